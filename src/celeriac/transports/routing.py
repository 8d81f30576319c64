"""From a kombu message to where and when it is delivered. Nothing here does I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from kombu.transport.virtual.exchange import TopicExchange
from kombu.utils.json import dumps

from celeriac.sql.messages import Draft, Taken
from celeriac.transports.storage import Binding, QueueOptions

__all__ = ["binding", "draft", "draft_again", "expiry", "matching"]

#: What a fanout binding matches: any routing key, even an empty one.
_ANYTHING = "^"

#: Seconds after which a message in a queue that may vanish is litter, when the queue has no TTL of its own.
_LITTER_AFTER = 86_400.0

_topic = TopicExchange(None)


def binding(exchange: str, exchange_type: str, routing_key: str, queue: str) -> Binding:
    """The binding of a queue to an exchange of one of AMQP's types direct, topic and fanout."""
    pattern = ""
    if exchange_type == "fanout":
        pattern = _ANYTHING
    elif exchange_type == "topic":
        pattern = _topic.key_to_pattern(routing_key)
    return Binding(exchange, routing_key, queue, pattern)


def matching(bindings: Iterable[Binding], routing_key: str) -> list[str]:
    """The queues that get a message with this routing key, each once."""
    return list(dict.fromkeys(bound.queue for bound in bindings if _matches(bound, routing_key)))


def _matches(bound: Binding, routing_key: str) -> bool:
    if bound.pattern:
        return _compiled(bound.pattern).match(routing_key) is not None
    return bound.routing_key == routing_key


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


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
        expires=_expiration(properties.get("expiration"), now),
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
