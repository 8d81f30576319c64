"""From a kombu message to where and when it is delivered. Nothing here does I/O."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from kombu.utils.json import dumps

from celeriac.protocol.exchanges import QueueOptions, binding, matching
from celeriac.sql.messages import Draft, Taken

__all__ = ["binding", "draft", "draft_again", "expiry", "matching"]

#: Seconds after which a message in a queue that may vanish is litter, when the queue has no TTL of its own.
_LITTER_AFTER = 86_400.0

#: Seconds for which a task that has expired is left to the workers, whose records and events tell of it.
_GRACE = 60.0


def draft(message: Mapping[str, Any], queue: str, now: float) -> Draft:
    """The draft of an augmented kombu message, whose delivery waits for the task's ETA when that is yet to come."""
    headers, properties = message["headers"], message["properties"]
    due = _timestamp(headers.get("eta"))
    return Draft(
        queue=queue,
        envelope=dumps(message),
        priority=_priority(properties.get("priority")),
        due=due if due is not None and due > now else None,
        task_id=_text(headers.get("id")),
        task=_text(headers.get("task")),
        expires=_expiration(properties.get("expiration"), now + (_GRACE if headers.get("task") else 0.0)),
    )


def draft_again(message: Any, taken: Taken) -> Draft:
    """The draft of a message that was taken for good and could not be delivered."""
    return Draft(
        queue=taken.queue,
        envelope=taken.envelope.decode(),
        priority=_priority(message.properties.get("priority")),
        task_id=_text(message.headers.get("id")),
        task=_text(message.headers.get("task")),
    )


def expiry(message: Draft, options: QueueOptions | None, now: float) -> float | None:
    """When a message may be dropped from a queue with these options: its own time or the queue's, what is earlier."""
    if options is None or options == QueueOptions():
        return message.expires
    ttl = options.message_ttl
    if ttl is None:
        ttl = max(options.expires_after or 0.0, _LITTER_AFTER)
    # A delay must not eat into the time that a message may wait.
    latest = max(now, message.due or 0.0) + ttl
    return latest if message.expires is None else min(message.expires, latest)


def _priority(value: Any) -> int:
    """AMQP's priority, 0 to 9, higher first."""
    try:
        return max(0, min(int(value), 9))
    except (TypeError, ValueError):
        return 0


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _timestamp(eta: Any) -> float | None:
    """An ETA header (ISO 8601) as seconds since the epoch. One that cannot be read delays nothing."""
    if isinstance(eta, str):
        try:
            eta = datetime.fromisoformat(eta)
        except ValueError:
            return None
    if not isinstance(eta, datetime):
        return None
    return (eta if eta.tzinfo else eta.replace(tzinfo=UTC)).timestamp()


def _expiration(milliseconds: Any, now: float) -> float | None:
    """AMQP's per-message TTL, which kombu writes as a text of milliseconds."""
    try:
        return now + int(milliseconds) / 1000
    except (TypeError, ValueError):
        return None
