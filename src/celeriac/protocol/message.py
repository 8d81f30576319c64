"""What travels: one message, its parts, and how a v2 task message is put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Message"]


@dataclass(frozen=True, slots=True)
class Message:
    """A message as Celery and kombu see it, whatever broker carries it.

    ``properties`` are AMQP's (``correlation_id``, ``reply_to``, ``priority``, ``delivery_mode``, ``expiration``,
    ``delivery_info``); ``headers`` are Celery's protocol v2 and whatever a caller added.
    """

    headers: Mapping[str, Any]
    properties: Mapping[str, Any]
    body: bytes
    content_type: str = "application/json"
    content_encoding: str = "utf-8"
