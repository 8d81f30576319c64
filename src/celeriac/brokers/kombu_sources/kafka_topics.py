"""The topics of a Kafka cluster: made when they are missing, measured, and emptied."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec  # type: ignore[attr-defined]

from celeriac.brokers.kombu_sources.kafka_errors import error_of
from celeriac.brokers.kombu_sources.kafka_settings import KafkaSettings, group_of

__all__ = ["Topics"]

T = TypeVar("T")

#: Seconds until servers are asked again that did not count as being there.
_FENCED = 0.2


class Topics:
    """The topics, seen by a client that is connected."""

    def __init__(self, admin: AdminClient, settings: KafkaSettings) -> None:
        self._admin = admin
        self._settings = settings
        self._known: set[str] = set()

    def ensure(self, topics: Iterable[str]) -> None:
        """Make those that are not there."""
        missing = set(topics) - self._known
        if missing:
            self._known |= self._admin.list_topics(timeout=self._settings.patience).topics.keys()
            missing -= self._known
        if missing:
            self._create(missing)
            self._known |= missing

    def forget(self, topic: str) -> None:
        """It has been deleted, perhaps."""
        self._known.discard(topic)

    def waiting(self, topic: str) -> int:
        """How many messages nobody has committed."""
        return sum(end - start for start, end in self._ranges(topic).values())

    def purge(self, topic: str) -> int:
        """Delete them. Returns how many they were."""
        ranges = self._ranges(topic)
        ends = [TopicPartition(topic, number, end) for number, (_, end) in ranges.items()]
        if ends:
            _results(self._admin.delete_records(ends, request_timeout=self._settings.patience))
        return sum(end - start for start, end in ranges.values())

    def starts(self, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """The offsets of the first messages that are there, for these topics and numbers of partitions."""
        return self._found(places, OffsetSpec.earliest())

    def ends(self, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """The offsets of the next messages to come."""
        return self._found(places, OffsetSpec.latest())

    def _found(self, places: Iterable[tuple[str, int]], which: OffsetSpec) -> dict[tuple[str, int], int]:
        found = self._offsets([TopicPartition(*place) for place in places], which)
        return {(each.topic, each.partition): offset for each, offset in found.items()}

    def _ranges(self, topic: str) -> dict[int, tuple[int, int]]:
        """For each partition the offset of the first message that nobody has committed, and of the next to come."""
        try:
            (description,) = _results(
                self._admin.describe_topics(TopicCollection([topic]), request_timeout=self._settings.patience)
            ).values()
        except KafkaException as exc:
            if (error := error_of(exc)) is not None and error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                return {}
            raise
        partitions = [TopicPartition(topic, each.id) for each in description.partitions]
        starts = self._offsets(partitions, OffsetSpec.earliest())
        ends = self._offsets(partitions, OffsetSpec.latest())
        committed = self._committed(topic, partitions)
        return {
            each.partition: (max(starts[each], committed.get(each.partition, 0)), ends[each])
            for each in partitions
        }

    def _offsets(self, partitions: list[TopicPartition], which: OffsetSpec) -> dict[TopicPartition, int]:
        futures = self._admin.list_offsets(
            dict.fromkeys(partitions, which), request_timeout=self._settings.patience
        )
        return {each: result.offset for each, result in _results(futures).items()}

    def _committed(self, topic: str, partitions: list[TopicPartition]) -> dict[int, int]:
        asked = ConsumerGroupTopicPartitions(group_of(topic), partitions)
        futures = self._admin.list_consumer_group_offsets([asked], request_timeout=self._settings.patience)
        (found,) = _results(futures).values()
        return {each.partition: each.offset for each in found.topic_partitions}

    def _create(self, topics: Iterable[str]) -> None:
        settings = self._settings
        new = [
            NewTopic(
                topic,
                num_partitions=settings.num_partitions,
                replication_factor=settings.replication_factor,
                config=settings.topic_config,
            )
            for topic in topics
        ]
        deadline = time.monotonic() + settings.patience
        while new:
            futures = self._admin.create_topics(
                new, operation_timeout=settings.patience, request_timeout=settings.patience
            )
            new = [each for each in new if not _is_made(futures[each.topic], time.monotonic() < deadline)]
            if new:
                time.sleep(_FENCED)


def _is_made(future: Future[None], patient: bool) -> bool:
    """Whether a topic is there. Raises what else the servers say."""
    try:
        future.result()
    except KafkaException as exc:
        error = error_of(exc)
        if error is not None and error.code() == KafkaError.TOPIC_ALREADY_EXISTS:  # somebody else was quicker
            return True
        # A server that has just come back is not counted for a moment.
        if patient and error is not None and "fenced" in error.str():
            return False
        raise
    return True


def _results(futures: Mapping[Any, Future[T]]) -> dict[Any, T]:
    return {key: future.result() for key, future in futures.items()}
