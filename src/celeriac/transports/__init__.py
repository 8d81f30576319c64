"""Synchronous kombu transports over celeriac's own queues.

They are what stock Celery needs to share a queue with celeriac's worker: ``.delay()``, ``celery beat``, remote control,
events, Flower, and ``celery worker`` itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from kombu.transport import TRANSPORT_ALIASES

__all__ = ["ALIASES", "register"]

#: kombu's name of a transport → where it is. ``sqlite://`` URLs find theirs by scheme; ``memory://`` stays kombu's, and
#: an app that means ours sets ``broker_transport = "celeriac-memory"``.
ALIASES: Mapping[str, str] = {
    "sqlite": "celeriac.transports.sql:Transport",
    "celeriac-memory": "celeriac.transports.memory:Transport",
}


def register() -> None:
    """Make ``kombu.Connection("sqlite:///celery.db")`` work. Safe to call twice; loads nothing."""
    TRANSPORT_ALIASES.update(ALIASES)
