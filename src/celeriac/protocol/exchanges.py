"""Exchanges and bindings as AMQP has them: which queues get a message with a routing key. Nothing here does I/O.

A binding carries all that a publisher needs to know, so that the types of exchanges are nobody's to remember: kombu's
virtual transports keep bindings in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from kombu.transport.virtual.exchange import TopicExchange

__all__ = ["Binding", "QueueOptions", "binding", "is_fanout", "matching"]

#: What a fanout binding matches: any routing key, even an empty one.
_ANYTHING = "^"

_topic = TopicExchange(None)


class QueueOptions(NamedTuple):
    """How long a queue lives without use (``x-expires``), and how long a message waits in it (``x-message-ttl``)."""

    expires_after: float | None = None
    message_ttl: float | None = None


class Binding(NamedTuple):
    """A queue's interest in an exchange.

    ``pattern`` is a regular expression that routing keys match, or empty when they must equal ``routing_key``. So a
    publisher needs to know nothing about the exchange, whose type is whoever declared it.
    """

    exchange: str
    routing_key: str
    queue: str
    pattern: str = ""


def binding(exchange: str, exchange_type: str, routing_key: str, queue: str) -> Binding:
    """The binding of a queue to an exchange of one of AMQP's types direct, topic and fanout."""
    pattern = ""
    if exchange_type == "fanout":
        pattern = _ANYTHING
    elif exchange_type == "topic":
        pattern = _topic.key_to_pattern(routing_key)
    return Binding(exchange, routing_key, queue, pattern)


def is_fanout(bound: Binding) -> bool:
    """Whether the binding takes everything that its exchange gets, as those to fanout exchanges do."""
    return bound.pattern == _ANYTHING


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
