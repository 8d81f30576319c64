"""The consumer groups that a process is a member of, one for each topic, and what it has taken from them."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as KafkaMessage

from celeriac.brokers.kombu_sources.kafka_errors import LOST, error_of
from celeriac.brokers.kombu_sources.kafka_offsets import Partition, Record

__all__ = ["Groups", "Held"]

logger = logging.getLogger("celeriac.brokers.kafka")

#: What a consumer tells of, and then goes on by itself.
_PASSING = frozenset(
    [
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._MAX_POLL_EXCEEDED,
        KafkaError._PARTITION_EOF,
        KafkaError._TRANSPORT,
    ]
)


class Held(NamedTuple):
    """A message that was read: what it says, and where it was, under which assignment of its partition."""

    value: bytes
    partition: Partition
    topic: str
    number: int
    record: Record

    @property
    def place(self) -> tuple[str, int]:
        """Its topic and the number of its partition."""
        return self.topic, self.number


class Groups:
    """Reads, and commits what is done.

    Args:
        make: Makes a consumer for a topic.
        gone: Called with a topic that is not there.
    """

    def __init__(self, make: Callable[[str], Consumer], gone: Callable[[str], None]) -> None:
        self._make = make
        self._gone = gone
        self._consumers: dict[str, Consumer] = {}
        self._assigned: dict[tuple[str, int], Partition] = {}
        self._settled: set[str] = set()
        #: What is done and could not be committed, from one assignment to the next.
        self._uncommitted: dict[tuple[str, int], set[Record]] = {}

    @property
    def is_member(self) -> bool:
        """Whether there is a group that this process is a member of."""
        return bool(self._consumers)

    def join(self, topic: str) -> None:
        """Be a member of the group of a topic."""
        if topic not in self._consumers:
            consumer = self._consumers[topic] = self._make(topic)
            consumer.subscribe(
                [topic],
                on_assign=lambda _, partitions: self._assign(topic, partitions),
                on_revoke=lambda _, partitions: self._revoke(topic, partitions),
                on_lost=lambda _, partitions: self._revoke(topic, partitions),
            )

    def is_settled(self, topic: str) -> bool:
        """Whether the group has said which partitions of the topic this member has, if any."""
        return topic in self._settled

    def positions(self, topic: str, patience: float) -> dict[tuple[str, int], int]:
        """Which offset is read next, of each partition that this member has."""
        mine = {place: each for place, each in self._assigned.items() if place[0] == topic}
        unknown = [TopicPartition(*place) for place, each in mine.items() if each.next is None]
        if unknown:
            for found in self._consumers[topic].committed(unknown, timeout=patience):
                mine[topic, found.partition].begin(max(0, found.offset))
        return {place: each.next or 0 for place, each in mine.items()}

    def leave(self, *, orderly: bool) -> None:
        """Be a member of none. Orderly, others have the partitions at once; that waits for ever on a dead server."""
        consumers, self._consumers = self._consumers, {}
        for consumer in consumers.values():
            if orderly:
                consumer.close()
        self._settled.clear()
        self._drop(list(self._assigned))

    def read(self, topic: str, limit: int, wait: float) -> list[Held]:
        """Up to ``limit`` messages of a topic; waits up to ``wait`` seconds for the first."""
        consumer = self._consumers[topic]
        first = consumer.poll(wait)
        if first is None:
            return []
        messages = [first, *(consumer.consume(limit - 1, 0.0) if limit > 1 else ())]
        held = [each for message in messages if (each := self._held(message)) is not None]
        if len(held) < len(messages):
            self._commit(topic)
        return held

    def finish(self, held: Iterable[Held]) -> None:
        """Commit what is done, as far as nothing before it is not."""
        topics = set()
        for each in held:
            if self._is_ours(each):
                each.partition.finish(each.record)
                topics.add(each.topic)
            else:  # should it come to us again, it is not handed over
                self._remember(each.place, [each.record])
        for topic in topics:
            self._commit(topic)

    def give_back(self, held: Iterable[Held]) -> None:
        """Read them again: here, or where their partitions are next."""
        offsets: defaultdict[tuple[str, int], set[int]] = defaultdict(set)
        for each in held:
            if self._is_ours(each):  # others read theirs again
                offsets[each.place].add(each.record[0])
        for place, back in offsets.items():
            offset = self._assigned[place].give_back(back)
            if offset is not None:
                self._consumers[place[0]].seek(TopicPartition(*place, offset))

    def _held(self, message: KafkaMessage) -> Held | None:
        topic, number, offset = message.topic(), message.partition(), message.offset()
        error = message.error()
        if error is not None:
            if error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART and topic is not None:
                self._gone(topic)
            elif error.code() not in _PASSING:
                raise KafkaException(error)
            return None
        assert topic is not None
        assert number is not None
        assert offset is not None
        partition = self._assigned.get((topic, number))
        record = offset, message.timestamp()[1]
        if partition is None or not partition.take(record):
            return None
        value = message.value()
        return Held(value if isinstance(value, bytes) else b"", partition, topic, number, record)

    def _is_ours(self, held: Held) -> bool:
        """Whether its partition has not been assigned anew since it was read."""
        return self._assigned.get(held.place) is held.partition

    def _remember(self, place: tuple[str, int], done: Iterable[Record]) -> None:
        partition = self._assigned.get(place)
        if partition is not None:
            partition.know(done)
        else:
            self._uncommitted.setdefault(place, set()).update(done)

    def _commit(self, topic: str) -> None:
        offsets = {
            place: offset
            for place, partition in self._assigned.items()
            if place[0] == topic and (offset := partition.committable) is not None
        }
        if not offsets:
            return
        partitions = [TopicPartition(*place, offset) for place, offset in offsets.items()]
        try:
            self._consumers[topic].commit(offsets=partitions, asynchronous=False)
        except KafkaException as exc:
            if (error := error_of(exc)) is None or error.code() not in LOST:
                raise
            # Whoever has them now has them a second time; nothing is lost.
            logger.warning("Messages of %s were taken away before they were done: %s", topic, error.str())
            return
        for place, offset in offsets.items():
            if place in self._assigned:
                self._assigned[place].committed(offset)

    def _assign(self, topic: str, partitions: list[TopicPartition]) -> None:
        self._settled.add(topic)
        for each in partitions:
            place = each.topic, each.partition
            self._assigned[place] = Partition(self._uncommitted.pop(place, ()))

    def _revoke(self, topic: str, partitions: list[TopicPartition]) -> None:
        self._settled.discard(topic)
        self._drop([(each.topic, each.partition) for each in partitions])

    def _drop(self, places: Iterable[tuple[str, int]]) -> None:
        for place in places:
            partition = self._assigned.pop(place, None)
            if partition is not None:
                self._remember(place, partition.uncommitted)
