"""Errors that waiting does not cure."""

from __future__ import annotations

from celeriac.errors import BrokerUnavailable

__all__ = ["refused"]


def refused(sentence: str) -> BrokerUnavailable:
    """An error that stays until somebody changes something; the sentence says what."""
    error = BrokerUnavailable(sentence)
    error.permanent = True
    return error
