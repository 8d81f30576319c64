"""Exchanges and bindings as AMQP has them: which queues get a message with a routing key. Nothing here does I/O.

A binding carries all that a publisher needs to know, so that the types of exchanges are nobody's to remember: kombu's
virtual transports keep bindings in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from kombu.transport.virtual.exchange import TopicExchange

__all__ = [
    "Arguments",
    "Binding",
    "ExchangeOptions",
    "QueueFlags",
    "QueueOptions",
    "binding",
    "is_fanout",
    "is_headers",
    "matching",
]

#: What a fanout binding matches: any routing key, even an empty one.
_ANYTHING = "^"

_topic = TopicExchange(None)


class QueueOptions(NamedTuple):
    """How long a queue lives without use (``x-expires``), and how long a message waits in it (``x-message-ttl``)."""

    expires_after: float | None = None
    message_ttl: float | None = None


class QueueFlags(NamedTuple):
    """How AMQP declares a queue, besides its arguments; not at all where it is ``declared`` by somebody else."""

    durable: bool = True
    auto_delete: bool = False
    declared: bool = True


class Arguments(dict[str, Any]):
    """Arguments of AMQP's, which nobody changes: they can be looked up by."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self))


_NONE = Arguments()


class ExchangeOptions(NamedTuple):
    """How an exchange is declared; not at all where that is somebody else's to do.

    ``kind`` is its type where a binding's pattern does not tell it: ``headers``, or one that a plugin knows.
    """

    kind: str = ""
    durable: bool = True
    auto_delete: bool = False
    arguments: Arguments = _NONE
    declared: bool = True


class Binding(NamedTuple):
    """A queue's interest in an exchange.

    ``pattern`` is a regular expression that routing keys match, or empty when they must equal ``routing_key``. So a
    publisher needs to know nothing about the exchange, whose type is whoever declared it. ``arguments`` are what
    exchanges of type ``headers`` go by.
    """

    exchange: str
    routing_key: str
    queue: str
    pattern: str = ""
    arguments: Arguments = _NONE
    options: ExchangeOptions = ExchangeOptions()


def binding(
    exchange: str,
    exchange_type: str,
    routing_key: str,
    queue: str,
    arguments: Mapping[str, Any] | None = None,
    options: ExchangeOptions = ExchangeOptions(),  # noqa: B008 - nobody changes it
) -> Binding:
    """The binding of a queue to an exchange of one of AMQP's types, direct, topic, fanout and headers, or another."""
    pattern = ""
    if exchange_type == "fanout":
        pattern = _ANYTHING
    elif exchange_type == "topic":
        pattern = _topic.key_to_pattern(routing_key)
    elif exchange_type != "direct":
        options = options._replace(kind=exchange_type)
    return Binding(exchange, routing_key, queue, pattern, Arguments(arguments or {}), options)


def is_fanout(bound: Binding) -> bool:
    """Whether the binding takes everything that its exchange gets, as those to fanout exchanges do."""
    return bound.pattern == _ANYTHING


def is_headers(bound: Binding) -> bool:
    """Whether the binding goes by the headers of messages."""
    return bound.options.kind == "headers"


def matching(
    bindings: Iterable[Binding], routing_key: str, headers: Mapping[str, Any] | None = None
) -> list[str]:
    """The queues that get a message with this routing key and these headers, each once."""
    return list(
        dict.fromkeys(bound.queue for bound in bindings if _matches(bound, routing_key, headers or {}))
    )


def _matches(bound: Binding, routing_key: str, headers: Mapping[str, Any]) -> bool:
    if bound.pattern:
        return _compiled(bound.pattern).match(routing_key) is not None
    if is_headers(bound):
        return _wanted(bound.arguments, headers)
    return bound.routing_key == routing_key


def _wanted(arguments: Mapping[str, Any], headers: Mapping[str, Any]) -> bool:
    """Whether headers are those that a binding asks for: https://www.rabbitmq.com/docs/exchanges#headers."""
    match = arguments.get("x-match", "all")
    names = [
        name
        for name in arguments
        if name != "x-match" and (match in ("all-with-x", "any-with-x") or not name.startswith("x-"))
    ]
    # An argument without a value asks for the header, whatever its value.
    found = (name in headers and arguments[name] in (None, headers[name]) for name in names)
    return any(found) if match in ("any", "any-with-x") else all(found)


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
