"""Kafka, with the topics, groups and envelopes of kombu's ``confluentkafka`` transport.

A queue is a topic, and its workers are one consumer group. A group keeps one offset for each partition, so what counts
as done is what comes before the first message that is not.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient

from celeriac.brokers.base import Capabilities, PartlyPublished
from celeriac.brokers.kombu_sources import kafka_errors
from celeriac.brokers.kombu_sources.base import Outgoing, Source, Taken
from celeriac.brokers.kombu_sources.envelopes import texts
from celeriac.brokers.kombu_sources.kafka_groups import Groups
from celeriac.brokers.kombu_sources.kafka_settings import KafkaSettings
from celeriac.brokers.kombu_sources.kafka_topics import Topics
from celeriac.brokers.kombu_sources.refusals import refused
from celeriac.errors import BrokerUnavailable

__all__ = ["KafkaSource"]

logger = logging.getLogger("celeriac.brokers.kafka")

Client = TypeVar("Client")

#: Seconds that one topic is waited for at a time: meanwhile no other has its turn, nor anybody else the thread.
_SLICE = 0.1

#: Seconds that the members of a group get to share its partitions, and messages that are there to be fetched.
_MEETING = 3.0
_FETCHING = 1.0

#: Seconds after which somebody who waits for confirmations looks whether the servers are there.
_LOOK = 0.5

_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")


class KafkaSource(Source):
    """Puts into topics, and takes from them as a member of their groups.

    Args:
        url: ``confluentkafka://[user:password@]host[:port][;confluentkafka://other[:port]]``, or ``kafka://``.
        options: Those of kombu's transport: ``num_partitions``, ``kafka_common_config`` and so on.
        lease: Not used: a group misses a member after its ``session.timeout.ms``.
    """

    capabilities = Capabilities(
        delay=False,
        priority=False,
        lease=False,
        delivery_count=False,
        dead_letters=False,
        atomic=False,
        exchanges=False,
        fanout=False,
        peek=False,
        shared_view=False,
        lists_bindings=False,
        any_text=False,
        any_size=False,
        ordered=False,
    )
    errors = (KafkaException, OSError)

    def __init__(self, url: str, *, options: Mapping[str, Any] | None = None, lease: float = 30.0) -> None:
        super().__init__(url, options=options, lease=lease)
        self._settings = KafkaSettings(url, self.options)
        self._admin: AdminClient | None = None
        self._topics: Topics | None = None
        self._producer: Producer | None = None
        self._groups = Groups(self._new_consumer, self._forget)
        self._heard: KafkaError | None = None
        self._missed = False
        self._met: set[str] = set()
        self._turn = 0

    def open(self) -> None:
        """Reach one of the servers."""
        self._heard, self._missed = None, False
        self._admin = self._made(AdminClient, self._settings.admin())
        deadline = time.monotonic() + self._settings.patience
        while not self._answers():
            if self._heard is not None or time.monotonic() > deadline:
                raise KafkaException(KafkaError(KafkaError._TRANSPORT))
        self._topics = Topics(self._admin, self._settings)

    def close(self) -> None:
        """Leave the groups, so that others have the partitions at once."""
        if self._groups.is_member:
            self._groups.leave(orderly=self._heard is None or self._answers())
        self._met.clear()
        if self._producer is not None:
            self._producer.purge()
        self._admin = self._topics = self._producer = None

    def put(self, messages: Sequence[Outgoing]) -> None:
        """Write the messages, and wait until they are confirmed; the deadline is ``connection_wait_time_seconds``."""
        values = [text.encode() for text in texts(messages)]
        records = [(self.topic_of(each.queue), value) for each, value in zip(messages, values, strict=True)]
        for topic, value in records:
            if len(value) > self._settings.largest:
                raise refused(
                    f"A message of {len(value)} bytes for {topic!r} is larger than Kafka takes "
                    f"({self._settings.largest}): send less, or raise message.max.bytes of the topic and in the "
                    "kafka_producer_config of broker_transport_options."
                )
        self._connected.ensure(topic for topic, _ in records)
        if self._producer is None:
            self._producer = self._made(Producer, self._settings.producer())
        self._send(self._producer, records)
        self._heard = None

    def take(self, queues: Sequence[str], limit: int, wait: float) -> list[Taken]:
        """What the partitions bring that this member of the groups has been given."""
        topics = {self.topic_of(queue): queue for queue in queues}
        self._connected.ensure(topics)
        for topic in topics:
            self._groups.join(topic)
        taken = self._read_until(time.monotonic() + wait, topics, limit)
        if not taken and not self._met.issuperset(topics):
            # What is there cannot be seen before the group has met; that takes longer where others are busy.
            self._met.update(topics)
            taken = self._read_until(time.monotonic() + _MEETING, topics, limit, self._groups.is_settled)
        if not taken and not wait and self._is_behind(topics):
            taken = self._read_until(time.monotonic() + _FETCHING, topics, limit)
        self._notice(bool(taken))
        return self._without_purged(taken)

    def finish(self, taken: Sequence[Taken]) -> None:
        """Commit what is done, as far as nothing before it is not."""
        self._groups.finish(each.handle for each in taken)

    def give_back(self, taken: Sequence[Taken]) -> None:
        """Read them again: here, or where their partitions are next."""
        self._groups.give_back(each.handle for each in taken)

    def size(self, queue: str) -> int:
        """What is in the topic and not committed by its group."""
        return self._connected.waiting(self.topic_of(queue))

    def purge(self, queue: str) -> int:
        """Delete that."""
        return self._connected.purge(self.topic_of(queue))

    def explained(self, exc: BaseException) -> BrokerUnavailable:
        """The error that tells in one sentence what went wrong."""
        if isinstance(exc, BrokerUnavailable):
            return exc
        return kafka_errors.explained(exc, self._heard, self.place)

    def topic_of(self, queue: str) -> str:
        """The topic of a queue, by kombu's rule."""
        topic = queue.replace("@", "")
        if not _TOPIC.fullmatch(topic):
            raise refused(
                f"Kafka takes no queue of the name {queue!r}: use up to 249 letters, digits, dots, hyphens and "
                "underscores."
            )
        return topic

    @property
    def _connected(self) -> Topics:
        if self._topics is None:
            raise BrokerUnavailable("The broker is not open.")
        return self._topics

    def _read_until(
        self,
        deadline: float,
        topics: Mapping[str, str],
        limit: int,
        enough: Callable[[str], bool] = lambda _: False,
    ) -> list[Taken]:
        """Read until there is something, or somebody wants the thread, or this is true of all topics."""
        taken = self._read(topics, limit, 0.0)
        while not taken and not self.is_awake and not all(map(enough, topics)):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            taken = self._read(topics, limit, min(left, _SLICE))
        return taken

    def _is_behind(self, topics: Iterable[str]) -> bool:
        """Whether something is there that was not read."""
        positions: dict[tuple[str, int], int] = {}
        for topic in topics:
            positions |= self._groups.positions(topic, self._settings.patience)
        if not positions:
            return False
        starts, ends = self._connected.starts(positions), self._connected.ends(positions)
        return any(ends[place] > max(starts[place], offset) for place, offset in positions.items())

    def _read(self, topics: Mapping[str, str], limit: int, wait: float) -> list[Taken]:
        """A fair share of each topic, and each in its turn the first one."""
        self._turn += 1
        names = list(topics)
        begin = self._turn % len(names) if names else 0
        taken: list[Taken] = []
        for number, topic in enumerate(names[begin:] + names[:begin]):
            share = -(-(limit - len(taken)) // (len(names) - number))
            if share > 0:
                held = self._groups.read(topic, share, 0.0 if taken else wait / len(names))
                taken += [Taken(topics[topic], each.value, each) for each in held]
        return taken

    def _without_purged(self, taken: list[Taken]) -> list[Taken]:
        """Consumers have fetched more than was asked for, and do not notice that it has been deleted since."""
        if not taken:
            return []
        starts = self._connected.starts({each.handle.place for each in taken})
        gone = [each for each in taken if each.handle.record[0] < starts[each.handle.place]]
        if gone:
            self.finish(gone)
        return [each for each in taken if each.handle.record[0] >= starts[each.handle.place]]

    def _send(self, producer: Producer, records: Sequence[tuple[str, bytes]]) -> None:
        confirmed: list[int] = []
        failures: list[KafkaError] = []

        def delivered(at: int, error: KafkaError | None, _: Message) -> None:
            if error is None:
                confirmed.append(at)
            else:
                failures.append(error)

        try:
            self._produce(producer, records, delivered)
            if failures:
                raise KafkaException(failures[0])
        except KafkaException as exc:
            if confirmed:
                raise PartlyPublished(confirmed, self.explained(exc)) from exc
            raise

    def _produce(
        self,
        producer: Producer,
        records: Sequence[tuple[str, bytes]],
        delivered: Callable[[int, KafkaError | None, Message], None],
    ) -> None:
        deadline = time.monotonic() + self._settings.patience + 1.0
        for at, (topic, value) in enumerate(records):
            while True:
                try:
                    producer.produce(topic, value, on_delivery=partial(delivered, at))
                    break
                except BufferError:  # it holds as many as it may; those have a deadline, too
                    producer.poll(_SLICE)
                    if time.monotonic() > deadline:
                        raise KafkaException(KafkaError(KafkaError._MSG_TIMED_OUT)) from None
        while producer.flush(_LOOK):
            away = self._heard is not None and not self._answers()
            if away or time.monotonic() > deadline:
                producer.purge()
                raise KafkaException(KafkaError(KafkaError._MSG_TIMED_OUT))

    def _notice(self, well: bool) -> None:
        """Say once that the servers are away, and once that they are back: consumers just wait for them."""
        if self._heard is None and not self._missed:
            return
        if well or self._answers():
            if self._missed:
                logger.info("Kafka at %s is back.", self.place)
            self._heard, self._missed = None, False
        elif not self._missed:
            self._missed = True
            logger.warning("%s Waiting for it.", self.explained(KafkaException(self._heard)))

    def _answers(self) -> bool:
        if self._admin is None:
            return False
        try:
            self._admin.list_topics(timeout=1.0)
        except KafkaException:
            self._admin.poll(0)
            return False
        return True

    def _new_consumer(self, topic: str) -> Consumer:
        return self._made(Consumer, self._settings.consumer(topic))

    def _forget(self, topic: str) -> None:
        self._connected.forget(topic)

    def _made(self, kind: Callable[[dict[str, Any]], Client], settings: dict[str, Any]) -> Client:
        try:
            return kind({"error_cb": self._hear, **settings})
        except KafkaException as exc:
            if (wrong := kafka_errors.wrong_settings(exc)) is not None:
                raise wrong from exc
            raise

    def _hear(self, error: KafkaError) -> None:
        # That all brokers are down only follows what is wrong with one of them.
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._heard = error
