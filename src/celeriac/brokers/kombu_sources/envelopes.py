"""What sources write and read: kombu's virtual envelope, and who gets how many of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from uuid import uuid4

from celeriac.brokers.kombu_sources.base import Outgoing
from celeriac.protocol import envelope

__all__ = ["fair_share", "texts", "without"]

T = TypeVar("T")

#: Options of Celery's and ours, which are no driver's.
_OURS = frozenset(
    {
        "callback",
        "errback",
        "interval_max",
        "interval_start",
        "interval_step",
        "max_retries",
        "polling_interval",
        "predefined_queues",
        "retry_errors",
        "ssl",
        "visibility_timeout",
    }
)


def texts(messages: Sequence[Outgoing]) -> list[str]:
    """The envelopes of messages. Raises TypeError for headers or properties that JSON cannot express."""
    batch = uuid4().hex
    return [
        envelope.encode(
            each.message,
            exchange=each.exchange,
            routing_key=each.routing_key or each.queue,
            delivery_tag=f"{batch}-{n}",
            priority=each.priority,
        )
        for n, each in enumerate(messages)
    ]


def without(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Transport options without those that are no driver's, nor these."""
    return {name: value for name, value in options.items() if name not in _OURS and name not in names}


def fair_share(
    queues: Sequence[str], limit: int, turn: int, look: Callable[[str, int], Sequence[T]]
) -> list[T]:
    """Up to ``limit`` of what ``look(queue, limit)`` finds, one of each queue in turn, in the order of each queue.

    ``turn`` says which queue is first.
    """
    if len(queues) == 1:
        return list(look(queues[0], limit))
    start = turn % max(1, len(queues))
    found = [list(look(queue, limit)) for queue in (*queues[start:], *queues[:start])]
    chosen: list[T] = []
    position = 0
    while len(chosen) < limit and any(position < len(each) for each in found):
        chosen += [each[position] for each in found if position < len(each)][: limit - len(chosen)]
        position += 1
    return chosen
