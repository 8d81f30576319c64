"""A message of a transport's as it is in the keeper: how it is written there, and read back."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from celeriac.brokers.base import DeadLetter, Delivery, Settlement
from celeriac.errors import MalformedMessage
from celeriac.protocol import envelope
from celeriac.protocol.message import Message
from celeriac.protocol.settlement import Action

__all__ = ["Kept", "burial", "dead_letter", "read"]

logger = logging.getLogger("celeriac.brokers.kombu")


@dataclass(frozen=True, slots=True)
class Kept:
    """A message in the keeper: its envelope as it is sent, and what else has to be known of it.

    Of a delayed one ``at`` is when it is due, of a dead one when it died; both in epoch seconds. ``deliveries`` is how
    often it was delivered.
    """

    queue: str
    envelope: bytes
    at: float
    deliveries: int = 0
    task_id: str = ""
    task: str = ""
    reason: str = ""

    def to_message(self) -> Message:
        """As the keeper's own messages are."""
        about = {name: getattr(self, name) for name in ("queue", "at", "deliveries", "task", "reason")}
        headers = {"task": "celeriac.kept", "id": self.task_id, "kept": about}
        return Message(headers, {}, self.envelope, "application/data", "binary")

    @classmethod
    def of(cls, kept: bytes | Message) -> Kept:
        """Read one back. Raises MalformedMessage for what is no message of this kind."""
        message = kept if isinstance(kept, Message) else envelope.decode(kept)
        about: Any = message.headers.get("kept")
        if not isinstance(about, dict) or not isinstance(about.get("queue"), str):
            raise MalformedMessage("It was not put there by this broker.")
        return cls(
            queue=about["queue"],
            envelope=message.body,
            at=float(about.get("at") or 0),
            deliveries=int(about.get("deliveries") or 0),
            task_id=str(message.headers.get("id") or ""),
            task=str(about.get("task") or ""),
            reason=str(about.get("reason") or ""),
        )


def read(kept: bytes | Message) -> Kept | None:
    """Read one back, if it can be read."""
    try:
        return Kept.of(kept)
    except (MalformedMessage, ValueError, TypeError) as exc:
        logger.error("A message in the keeper cannot be read, and stays there: %s", exc)
        return None


def burial(delivery: Delivery) -> Settlement:
    """What makes a dead letter of a message that was received from the keeper."""
    kept = read(delivery.envelope)
    return Settlement(delivery.tag, Action.DEAD_LETTER, reason=kept.reason if kept else "It cannot be read.")


def dead_letter(letter: DeadLetter, kept: Kept) -> DeadLetter:
    """A dead letter of the transport: under the id that the keeper's has, all else as it was kept."""
    return DeadLetter(
        id=letter.id,
        queue=kept.queue,
        task_id=kept.task_id,
        task=kept.task,
        reason=kept.reason,
        deliveries=kept.deliveries,
        at=kept.at,
        envelope=kept.envelope,
    )
