"""Exchanges in Redis, as kombu's transport keeps them: a set of bindings each, and pub/sub for those of type fanout."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from celeriac.brokers.base import Publication
from celeriac.brokers.redis_keys import Layout
from celeriac.protocol.exchanges import Binding
from celeriac.redis.link import Link
from celeriac.redis.server import Server
from celeriac.redis.subscriber import Subscriber

__all__ = ["ExchangeLayout", "Listeners", "to_listeners"]

logger = logging.getLogger("celeriac.redis")


class ExchangeLayout:
    """Names and texts of kombu's.

    Args:
        layout: The names of other keys.
        options: kombu's transport options ``fanout_prefix`` and ``fanout_patterns``.
        db: The number of the database.
    """

    def __init__(self, layout: Layout, options: Mapping[str, Any], db: int) -> None:
        self._prefix, self._separator = layout.prefix, layout.separator
        prefix = options.get("fanout_prefix", True)
        template = prefix if isinstance(prefix, str) else "/{db}." if prefix else ""
        self._channel = layout.prefix + template.format(db=db)
        self._patterns = bool(options.get("fanout_patterns", True))

    def tables_of(self, exchange: str) -> tuple[str, str]:
        """The sets of an exchange's bindings: of all, and of those to queues that last."""
        return (
            f"{self._prefix}_kombu.binding.{exchange}",
            f"{self._prefix}_kombu.binding_permanent.{exchange}",
        )

    def member(self, binding: Binding) -> str:
        """A binding as a member of those sets."""
        return self._separator.join((binding.routing_key, binding.pattern, binding.queue))

    def binding(self, exchange: str, member: bytes) -> Binding:
        """The binding that a member stands for."""
        routing_key, pattern, queue = member.decode().split(self._separator)
        return Binding(exchange, routing_key, queue, pattern)

    def channel_of(self, exchange: str, routing_key: str) -> str:
        """The channel on which the listeners of a fanout exchange hear messages with a routing key."""
        return f"{self._channel}{exchange}{f'/{routing_key}' if routing_key and self._patterns else ''}"


class Listeners:
    """Queues that are bound to fanout exchanges: what is said on a channel is put into them while this process lives.

    So such a message is under a lease like all others from the moment it is heard.
    """

    def __init__(self, server: Server, layout: Layout, exchanges: ExchangeLayout) -> None:
        self._server = server
        self._layout = layout
        self._exchanges = exchanges
        self._stops: dict[Binding, Callable[[], None]] = {}

    async def listen(self, link: Link, binding: Binding) -> None:
        """Fill the binding's queue from now on. Raises BrokerUnavailable."""
        if binding in self._stops:
            return
        queue = self._layout.plain_list_of(binding.queue)

        def put(message: bytes) -> None:
            link.send("LPUSH", queue, message).add_done_callback(_complain)

        channel = self._exchanges.channel_of(binding.exchange, binding.routing_key)
        self._stops[binding] = await Subscriber.shared(self._server).listen(channel, put)

    def close(self) -> None:
        """Listen no more."""
        for stop in self._stops.values():
            stop()
        self._stops.clear()


def _complain(put: asyncio.Future[Any]) -> None:
    if not put.cancelled() and (error := put.exception()) is not None:
        logger.error("A message for all who listen could not be kept: %s", error)


def to_listeners(
    publications: Sequence[Publication],
) -> tuple[Sequence[Publication], Sequence[Publication]]:
    """Those that queues get, and those that whoever listens at the moment gets."""
    queued: list[Publication] = []
    heard: list[Publication] = []
    for each in publications:
        (queued if each.queue or each.exchange_type != "fanout" else heard).append(each)
    return queued, heard
