"""A channel of our transports: publishing to exchanges, and consuming under leases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amqp.protocol import queue_declare_ok_t  # type: ignore[import-untyped]
from kombu.exceptions import ChannelError
from kombu.log import get_logger
from kombu.transport import virtual
from kombu.transport.base import to_rabbitmq_queue_arguments

from celeriac.errors import BrokerError, MalformedMessage
from celeriac.sql.messages import Draft, Ending, Taken
from celeriac.sql.tables import DEAD, READY
from celeriac.transports import routing
from celeriac.transports.inbox import Arrival, Inbox, Subscription
from celeriac.transports.leases import QoS
from celeriac.transports.message import Message
from celeriac.transports.storage import Binding, Declaration, Order, QueueOptions, Storage

__all__ = ["Channel"]

logger = get_logger(__name__)

#: Seconds that a queue outlives its last consumer when it was declared to be deleted with it (AMQP's auto-delete).
#: Other processes may still consume from it; theirs is the word that keeps it.
_AUTO_DELETE_AFTER = 60.0

_Channel: Any = virtual.Channel  # whose annotations are only partly there


@dataclass(slots=True)
class _Declared:
    """A queue that this channel has declared."""

    options: QueueOptions
    exclusive: bool
    auto_delete: bool
    bindings: dict[Binding, None]


class Channel(_Channel):  # type: ignore[misc]
    """AMQP's verbs, for one user of a :class:`~celeriac.transports.virtual.Transport`.

    One thread consumes; any thread settles, as the prefork pool does.
    """

    supports_fanout = True
    QoS = QoS
    Message = Message

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self.closed = False
        self.inbox = Inbox()
        #: Epoch seconds before which there is nothing to find for this channel, unless something changes.
        self.look_at = 0.0
        self._declared: dict[str, _Declared] = {}

    @property
    def _storage(self) -> Storage:
        storage: Storage = self.connection.storage
        return storage

    # Publishing

    def basic_publish(self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any) -> None:
        """Put a message into a queue (no exchange: the routing key names it) or into all that an exchange finds."""
        self._inplace_augment_message(message, exchange, routing_key)
        if not exchange:
            self._put(routing_key, message)
            return
        routed = self._put_fanout(exchange, message, routing_key)
        if not routed and self.deadletter_queue and self.typeof(exchange).type == "direct":
            self._put(self.deadletter_queue, message)

    def _put(self, queue: str, message: Mapping[str, Any], **kwargs: Any) -> None:
        now = self._storage.now()
        self._storage.put([self._expiring(routing.draft(message, queue, now), now)])

    def _put_fanout(self, exchange: str, message: Mapping[str, Any], routing_key: str, **kwargs: Any) -> int:
        return self._storage.route(exchange, routing_key, routing.draft(message, "", self._storage.now()))

    def _expiring(self, draft: Draft, now: float) -> Draft:
        # Who publishes through Celery has declared the queue on this very channel.
        declared = self._declared.get(draft.queue)
        options = declared.options if declared else self._storage.queue_options(draft.queue)
        return draft._replace(expires=routing.expiry(draft, options, now))

    # Queues, exchanges and bindings

    def prepare_queue_arguments(
        self, arguments: Mapping[str, Any] | None, **kwargs: Any
    ) -> Mapping[str, Any]:
        """kombu's queue options under the names that RabbitMQ gave them."""
        prepared: Mapping[str, Any] = to_rabbitmq_queue_arguments(arguments or {}, **kwargs)
        return prepared

    def queue_declare(self, queue: str | None = None, passive: bool = False, **kwargs: Any) -> Any:
        """Declare a queue, or with ``passive`` only ask for it (raises ChannelError 404). Returns its message count."""
        if not passive:
            return super().queue_declare(queue, **kwargs)
        if not queue or not self._has_queue(queue):
            raise ChannelError(f"NOT_FOUND - no queue {queue!r}", (50, 10), "Channel.queue_declare", "404")
        return queue_declare_ok_t(queue, self._size(queue), 0)

    def _new_queue(
        self,
        queue: str,
        arguments: Mapping[str, Any] | None = None,
        auto_delete: bool = False,
        exclusive: bool = False,
        **kwargs: Any,
    ) -> None:
        expires_after = _seconds((arguments or {}).get("x-expires"))
        if expires_after is None and (auto_delete or exclusive):
            expires_after = _AUTO_DELETE_AFTER
        options = QueueOptions(expires_after, _seconds((arguments or {}).get("x-message-ttl")))
        self._storage.declare(queue, options)
        previous = self._declared.get(queue)
        self._declared[queue] = _Declared(
            options, exclusive, auto_delete, previous.bindings if previous else {}
        )
        self.connection.keeper_reconsiders()

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return self._storage.exists(queue)

    def _size(self, queue: str) -> int:
        return self._storage.size(queue)

    def _purge(self, queue: str) -> int:
        return self._storage.purge(queue)

    def queue_delete(
        self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: Any
    ) -> int | None:
        """Delete a queue with its bindings. Returns how many messages went with it, None if it was to stay."""
        if if_empty and self._size(queue):
            return None
        if if_unused and self.inbox.consumes(queue):
            return None
        self._declared.pop(queue, None)
        return self._storage.delete(queue)

    def exchange_declare(
        self, exchange: str | None = None, *args: Any, passive: bool = False, **kwargs: Any
    ) -> None:
        """Declare an exchange: this connection then knows its type, and the bindings it makes carry it to others."""
        if passive and exchange not in self.state.exchanges and self._storage.bindings(exchange):
            return
        super().exchange_declare(exchange, *args, passive=passive, **kwargs)

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """Delete an exchange and its bindings; the queues stay, as the AMQP specification says."""
        bindings = self._storage.bindings(exchange)
        if if_unused and bindings:
            return
        self._storage.unbind(bindings)
        self.state.exchanges.pop(exchange, None)

    def queue_bind(
        self, queue: str, exchange: str | None = None, routing_key: str | None = "", **kwargs: Any
    ) -> None:
        """Bind a queue to an exchange, for every process that publishes to it."""
        binding = self._binding(queue, exchange, routing_key)
        self._storage.bind(binding)
        if queue in self._declared:
            self._declared[queue].bindings[binding] = None

    def queue_unbind(
        self, queue: str, exchange: str | None = None, routing_key: str | None = "", **kwargs: Any
    ) -> None:
        """Undo :meth:`queue_bind`."""
        binding = self._binding(queue, exchange, routing_key)
        self._storage.unbind([binding])
        if queue in self._declared:
            self._declared[queue].bindings.pop(binding, None)

    def _binding(self, queue: str, exchange: str | None, routing_key: str | None) -> Binding:
        exchange = exchange or "amq.direct"
        return routing.binding(exchange, self.typeof(exchange).type, routing_key or "", queue)

    def get_table(self, exchange: str) -> list[tuple[str, str, str]]:
        """The exchange's bindings as (routing key, pattern, queue)."""
        return [(each.routing_key, each.pattern, each.queue) for each in self._storage.bindings(exchange)]

    def list_bindings(self) -> Iterator[tuple[str, str, str]]:
        """All bindings as (queue, exchange, routing key)."""
        return ((each.queue, each.exchange, each.routing_key) for each in self._storage.bindings())

    # Consuming

    def basic_consume(
        self, queue: str, no_ack: bool, callback: Callable[[Any], Any], consumer_tag: str, **kwargs: Any
    ) -> None:
        """Call back with each message of the queue, while the transport drains events."""
        self.inbox.subscribe(consumer_tag, Subscription(queue, no_ack, callback))
        self.look_at = 0.0
        self.connection.keeper_reconsiders()

    def basic_cancel(self, consumer_tag: str) -> None:
        """End a consumer. What it has not been handed yet goes back; what it has not settled stays its own."""
        queue = self.inbox.unsubscribe(consumer_tag)
        if queue is None:
            return
        self._put_back(self.inbox.withdraw(queue))
        if self._goes_with_its_consumer(queue):
            self.queue_delete(queue)

    def _goes_with_its_consumer(self, queue: str) -> bool:
        declared = self._declared.get(queue)
        if declared is None or not (declared.exclusive or declared.auto_delete):
            return False
        # Another process may consume from a queue that is not exclusive. It brings back one that is missing, but not
        # the messages; only those with a TTL may be lost.
        return declared.exclusive or declared.options.message_ttl is not None or not self._size(queue)

    def wants(self, now: float) -> bool:
        """Whether it makes sense to look for messages for this channel."""
        inbox = self.inbox
        return (
            inbox.has_consumers and not inbox.has_arrivals and now >= self.look_at and self.qos.can_consume()
        )

    def orders(self) -> list[Order]:
        """What this channel would take now."""
        return self.inbox.orders(self.qos.can_consume_max_estimate())

    def accept(self, deliveries: Sequence[Taken], no_ack: bool) -> None:
        """Line up what was taken, after sorting out what no consumer should see."""
        for taken in deliveries:
            message = self._receive(taken, no_ack)
            if message is not None:
                self.inbox.append(Arrival(message, taken, no_ack))

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any | None:
        """Take one message from the queue, without waiting for it."""
        [deliveries] = self._storage.take([Order((queue,), 1, no_ack)], self.connection.lease)
        for taken in deliveries:
            return self._receive(taken, no_ack)
        return None

    def _receive(self, taken: Taken, no_ack: bool) -> Any | None:
        """The message, noted as delivered, or None when it had to be laid aside."""
        if no_ack:
            return self._open(taken)
        if taken.deliveries > self.connection.delivery_limit:
            # Stock workers do not count: a message that kills its worker would go round for ever.
            self._bury(taken, f"delivered {taken.deliveries - 1} times without an outcome", counted=False)
            return None
        try:
            message = Message(taken, self)
        except MalformedMessage as exc:
            self._bury(taken, str(exc))
            return None
        self.qos.append(message, taken.tag)
        self.connection.keeper_starts()
        return message

    def _open(self, taken: Taken) -> Any | None:
        try:
            return Message(taken, self)
        except MalformedMessage as exc:
            logger.error("Dropped a message of queue %r: %s", taken.queue, exc)
            return None

    def _bury(self, taken: Taken, reason: str, counted: bool = True) -> None:
        self._storage.settle([Ending(taken.tag, DEAD, self._storage.now(), counted=counted, reason=reason)])
        logger.error("Dead-lettered message %s of queue %r: %s", taken.tag, taken.queue, reason)

    # Settling

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """Acknowledge a delivery: the message is gone."""
        self._settle(self.qos.release(delivery_tag, multiple), delivery_tag, None)

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Put a message back to the front of its queue, or lay it aside as a dead letter."""
        tags = self.qos.release(delivery_tag)
        if requeue:
            self._settle(tags, delivery_tag, READY)
        else:
            self._settle(tags, delivery_tag, DEAD, self._storage.now(), "rejected by its consumer")

    def _settle(
        self,
        tags: Sequence[str],
        asked: str,
        state: int | None,
        due: float | None = None,
        reason: str | None = None,
    ) -> None:
        # The tags are forgotten already: should the database fail us here, the lease ends and the message comes again.
        if not tags:
            logger.debug("Delivery %s was settled before, or is none of this channel's.", asked)
            return
        for tag in self._storage.settle([Ending(tag, state, due, reason=reason) for tag in tags]):
            logger.warning(
                "Too late to settle %s: its lease had ended, and somebody else has the message.", tag
            )
        if self.connection is not None:
            self.connection.wake()

    def basic_recover(self, requeue: bool = False) -> None:
        """Put back everything that was delivered and not settled."""
        self.hand_back()

    def hand_back(self) -> None:
        """Return what waits here and what is not settled, as if it had never been delivered."""
        self._put_back(self.inbox.withdraw())
        tags = self.qos.release_all()
        if tags:
            logger.info("Handing back %d unacknowledged message(s).", len(tags))
            self._return(tags)

    def _put_back(self, arrivals: Sequence[Arrival]) -> None:
        tags = [tag for each in arrivals if not each.no_ack for tag in self.qos.release(each.taken.tag)]
        if tags:
            self._return(tags)
        now = self._storage.now()
        drafts = [routing.draft_again(each.message, each.taken) for each in arrivals if each.no_ack]
        if drafts:
            self._storage.put([self._expiring(draft, now) for draft in drafts])

    def _return(self, tags: Sequence[str]) -> None:
        self._storage.settle([Ending(tag, READY, counted=False) for tag in tags])

    # Life

    def kept(self) -> tuple[list[str], list[Declaration]]:
        """The leases to renew, and the queues that must not expire while they are consumed here."""
        declarations = [
            Declaration(queue, declared.options, tuple(declared.bindings))
            for queue, declared in list(self._declared.items())
            if declared.options.expires_after is not None and self.inbox.consumes(queue)
        ]
        return self.qos.leased(), declarations

    def shortest_life(self) -> float | None:
        """Seconds after which the first of this channel's queues would expire."""
        lives = [each.options.expires_after for each in list(self._declared.values())]
        return min((life for life in lives if life is not None), default=None)

    def lose(self, void: Sequence[str]) -> None:
        """Note that these deliveries are no longer this channel's."""
        for tag in self.qos.lose(void):
            logger.warning("The lease of %s has ended, and somebody else has the message.", tag)

    def forget(self) -> None:
        """Drop everything without a word to the database: after a fork it all belongs to the parent."""
        self.inbox = Inbox()
        self._declared = {}
        self._qos = None

    def close(self) -> None:
        """End the consumers and hand back what is not settled."""
        if self.closed:
            return
        self.closed = True
        try:
            for consumer_tag in self.inbox.consumer_tags:
                self.basic_cancel(consumer_tag)
            self.hand_back()
        except BrokerError as exc:
            logger.warning("Unacknowledged messages come back only when their leases end: %s", exc)
        finally:
            self.connection.close_channel(self)
            self.exchange_types = None


def _seconds(milliseconds: Any) -> float | None:
    return None if milliseconds is None else float(milliseconds) / 1000
