"""Queues, exchanges and bindings in RabbitMQ: declared once for each connection, as Celery declares them.

Delayed messages wait in the exchanges and queues of kombu's native delayed delivery, so that stock clients and workers
share them: https://docs.celeryq.dev/en/stable/getting-started/backends-and-brokers/rabbitmq.html#using-quorum-queues
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from aiormq import exceptions as amqp
from kombu.transport.native_delayed_delivery import (
    CELERY_DELAYED_DELIVERY_EXCHANGE,
    MAX_LEVEL,
    calculate_routing_key,
    level_name,
)

from celeriac.brokers.amqp_errors import DRIVER_ERRORS, explained, is_other_arguments, refused
from celeriac.brokers.amqp_link import ANSWER_TIMEOUT, Link
from celeriac.errors import BrokerUnavailable
from celeriac.protocol.exchanges import Binding, ExchangeOptions, QueueFlags, is_fanout

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel

__all__ = ["DEAD", "LONGEST_DELAY", "Topology", "delayed_place"]

#: The queue of dead letters. A classic one: each look at it delivers them once more, and RabbitMQ 4 drops what was
#: delivered from a quorum queue too often.
DEAD = "celeriac.dead"

#: Deliveries of one message that RabbitMQ may count. After 20, or what a policy says, RabbitMQ 4 drops it silently.
_MOST_COUNTED = 10

#: Seconds that kombu's exchanges can delay a message.
LONGEST_DELAY = 2 ** (MAX_LEVEL + 1) - 1

#: Seconds in which the server declares all that delays messages, the first time.
_LEVELS_TIMEOUT = 60.0

#: What stands before the name of a queue when a message leaves the last exchange: one word for each level.
_PREFIX = "*." * (MAX_LEVEL + 1)


def delayed_place(seconds: int, queue: str) -> tuple[str, str]:
    """Exchange and routing key of a message that a queue is to have in so many whole seconds."""
    return level_name(MAX_LEVEL), calculate_routing_key(min(seconds, LONGEST_DELAY), queue)


_PLAIN = ExchangeOptions()


class Topology:
    """What has been declared over one link. ``arguments_of`` and ``flags_of`` give a queue's by its name."""

    def __init__(
        self,
        link: Link,
        arguments_of: Callable[[str], Mapping[str, Any]],
        flags_of: Callable[[str], QueueFlags],
        delay_queue_type: str,
    ) -> None:
        self._link = link
        self._arguments_of = arguments_of
        self._flags_of = flags_of
        self._delay_queue_type = delay_queue_type
        self._lock = asyncio.Lock()
        self._channel: AbstractChannel | None = None
        self._background: set[asyncio.Future[None]] = set()
        self.forget()

    def forget(self) -> None:
        """The connection is another one: somebody may have deleted what was declared before."""
        self._queues: set[str] = set()
        self._exchanges: set[str] = set()
        self._bound: set[Binding] = set()
        self._delayed: set[str] = set()
        self._levels: asyncio.Future[None] | None = None

    def close(self) -> None:
        """Declare nothing any more."""
        for task in (*self._background, *filter(None, [self._levels])):
            task.cancel()
        self.forget()

    def forget_queue(self, queue: str) -> None:
        """A queue is gone."""
        self._queues.discard(queue)
        self._delayed.discard(queue)

    async def queue(self, name: str) -> None:
        """Have a queue. Raises BrokerUnavailable, for good where it exists with other arguments."""
        if name in self._queues:
            return
        arguments, flags = (
            ({}, QueueFlags()) if name == DEAD else (self._arguments_of(name), self._flags_of(name))
        )
        if arguments.get("x-queue-type") == "stream":
            raise refused(
                f"The queue {name!r} is a stream, from which a new worker gets nothing that was sent before it came: "
                "declare it as quorum or classic in task_queues."
            )
        if flags.declared:
            await self._ask(
                "queue_declare",
                name,
                durable=flags.durable,
                auto_delete=flags.auto_delete,
                arguments=dict(arguments),
            )
        self._queues.add(name)

    async def consumed(self, name: str) -> None:
        """Have a queue that is consumed from, which what was delayed before it was deleted and made anew reaches.

        What that needs is declared meanwhile.
        """
        await self.queue(name)
        if name not in self._delayed:
            task = asyncio.ensure_future(self.delay(name))
            self._background.add(task)
            task.add_done_callback(self._background.discard)
            task.add_done_callback(lambda done: done.cancelled() or done.exception())

    def is_quorum(self, name: str) -> bool:
        """Whether RabbitMQ counts the deliveries of this queue's messages."""
        return self._arguments_of(name).get("x-queue-type") == "quorum"

    def most_counted(self, name: str) -> float:
        """How many deliveries of a message of this queue RabbitMQ may count before a copy takes its place.

        A limit that is declared with a dead-letter exchange is somebody's will.
        """
        arguments = self._arguments_of(name)
        limit = arguments.get("x-delivery-limit")
        if type(limit) is not int or limit < 0:
            return _MOST_COUNTED
        return math.inf if "x-dead-letter-exchange" in arguments else min(max(limit, 1), _MOST_COUNTED)

    async def exchange(self, name: str, kind: str, options: ExchangeOptions = _PLAIN) -> None:
        """Have an exchange; one that is there stays as it is, and so do RabbitMQ's own."""
        if not name or name in self._exchanges or name.startswith("amq.") or not options.declared:
            return
        try:
            await self._ask(
                "exchange_declare",
                name,
                exchange_type=kind,
                durable=options.durable,
                auto_delete=options.auto_delete,
                arguments=dict(options.arguments),
            )
        except Exception as exc:
            if not is_other_arguments(exc.__cause__ or exc):
                raise
        self._exchanges.add(name)

    async def bind(self, bound: Binding) -> None:
        """Have a binding, with its queue and its exchange."""
        if bound in self._bound or not self._flags_of(bound.queue).declared:
            return
        await self.queue(bound.queue)
        kind = bound.options.kind or (
            "fanout" if is_fanout(bound) else "topic" if bound.pattern else "direct"
        )
        await self.exchange(bound.exchange, kind, bound.options)
        await self._ask(
            "queue_bind", bound.queue, bound.exchange, bound.routing_key, arguments=dict(bound.arguments)
        )
        self._bound.add(bound)

    async def delay(self, queue: str) -> None:
        """Have the exchanges in which messages for a queue wait."""
        if queue in self._delayed:
            return
        await self.queue(queue)
        await self._have_delivery(queue)
        await self._have_levels()
        self._delayed.add(queue)

    async def _have_delivery(self, queue: str) -> None:
        """Have the last exchange of delayed messages, and a queue bound to it."""
        await self._ask(
            "exchange_declare", CELERY_DELAYED_DELIVERY_EXCHANGE, exchange_type="topic", durable=True
        )
        await self._ask("queue_bind", queue, CELERY_DELAYED_DELIVERY_EXCHANGE, f"{_PREFIX}{queue}")

    async def size(self, queue: str) -> int:
        """How many messages are ready in a queue; nothing where there is none."""
        try:
            declared = await self._ask("queue_declare", queue, passive=True)
        except Exception as exc:
            if isinstance(exc.__cause__, amqp.ChannelNotFoundEntity):
                return 0
            raise
        return int(declared.message_count or 0)

    async def purge(self, queue: str) -> int:
        """Delete what is ready in a queue. Returns how many messages that were."""
        if not await self.size(queue):
            return 0
        return int((await self._ask("queue_purge", queue)).message_count or 0)

    async def _have_levels(self) -> None:
        """Have what delayed messages wait in; declaring it takes a while, and goes on if nobody waits for it."""
        try:
            with self._link.doubting():
                await asyncio.shield(self._begin_levels())
        except DRIVER_ERRORS as exc:
            raise explained(exc, self._link.place.shown) from exc

    def _begin_levels(self) -> asyncio.Future[None]:
        begun = self._levels
        if begun is None or (begun.done() and (begun.cancelled() or begun.exception() is not None)):
            begun = self._levels = asyncio.ensure_future(self._declare_levels())
            begun.add_done_callback(lambda done: done.cancelled() or done.exception())
        return begun

    async def _declare_levels(self) -> None:
        asked = [
            question
            for level in range(MAX_LEVEL + 1)
            for question in self._level(
                level, level_name(level - 1) if level else CELERY_DELAYED_DELIVERY_EXCHANGE
            )
        ]
        channel = await self._link.channel()
        try:
            async with asyncio.timeout(_LEVELS_TIMEOUT):
                for method, arguments in asked:
                    await getattr(channel, method)(**arguments, nowait=True)
                await channel.queue_declare(level_name(0), passive=True)
        except (TimeoutError, *DRIVER_ERRORS):
            # The server has closed the channel without a word to us; or it is too slow for all at once.
            for method, arguments in asked:
                await self._ask(method, **arguments)
        finally:
            with contextlib.suppress(TimeoutError, *DRIVER_ERRORS):
                await channel.close()

    def _level(self, level: int, following: str) -> list[tuple[str, dict[str, Any]]]:
        """One level, as ``declare_native_delayed_delivery_exchanges_and_queues`` of kombu's makes it.

        A message whose bit is set waits there for 2 to the power of ``level`` seconds.
        """
        name = level_name(level)
        arguments: dict[str, Any] = {
            "x-queue-type": self._delay_queue_type,
            "x-overflow": "reject-publish",
            "x-message-ttl": 2**level * 1000,
            "x-dead-letter-exchange": following,
        }
        if self._delay_queue_type == "quorum":
            arguments["x-dead-letter-strategy"] = "at-least-once"
        before = "*." * (MAX_LEVEL - level)
        return [
            ("exchange_declare", {"exchange": name, "exchange_type": "topic", "durable": True}),
            ("queue_declare", {"queue": name, "durable": True, "arguments": arguments}),
            ("queue_bind", {"queue": name, "exchange": name, "routing_key": f"{before}1.#"}),
            ("exchange_bind", {"destination": following, "source": name, "routing_key": f"{before}0.#"}),
        ]

    async def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """One question over a channel of its own, which a refusal closes. Raises BrokerUnavailable."""
        async with self._lock:
            channel = self._channel
            if channel is None or not self._link.carries(channel):
                channel = self._channel = await self._link.channel()
            self._channel = None  # for good, if this is not answered
            try:
                with self._link.doubting():
                    async with asyncio.timeout(ANSWER_TIMEOUT):
                        answer = await getattr(channel, method)(*args, **kwargs)
            except ValueError as exc:
                self._channel = channel
                names = ", ".join(repr(each) for each in args if isinstance(each, str))
                raise refused(
                    f"The driver of RabbitMQ cannot express {names} ({exc}): names of queues and exchanges are made of "
                    "letters, digits, spaces and -_.:@#,/+, and no longer than 127 characters."
                ) from exc
            except TimeoutError:
                await self._link.drop()
                raise BrokerUnavailable(
                    f"RabbitMQ at {self._link.place.shown} does not answer: it hangs, cannot be reached any more, or "
                    "blocks publishers for want of memory or disk."
                ) from None
            except DRIVER_ERRORS as exc:
                raise explained(exc, self._link.place.shown) from exc
            self._channel = channel
            return answer
