"""Which offset of a Kafka partition may be committed."""

from __future__ import annotations

from celeriac.brokers.kombu_sources.kafka_offsets import Partition


def taken(*offsets: int, partition: Partition | None = None) -> Partition:
    partition = partition or Partition()
    assert [partition.take((offset, 0)) for offset in offsets] == [True] * len(offsets)
    return partition


def finish(partition: Partition, *offsets: int) -> int | None:
    for offset in offsets:
        partition.finish((offset, 0))
    offset = partition.committable
    if offset is not None:
        partition.committed(offset)
    return offset


def test_nothing_is_committed_before_something_is_done() -> None:
    assert Partition().committable is None
    assert taken(5, 6, 7).committable is None


def test_what_is_done_counts_up_to_the_first_that_is_not() -> None:
    partition = taken(5, 6, 7, 8)
    assert finish(partition, 6) == 5
    assert finish(partition, 8) is None
    assert finish(partition, 5) == 7
    assert finish(partition, 7) == 9
    assert finish(partition) is None


def test_offsets_have_gaps() -> None:
    partition = taken(5, 9, 20)
    assert finish(partition, 5) == 9
    assert finish(partition, 20) is None
    assert finish(partition, 9) == 21


def test_what_was_given_back_comes_again_and_nothing_else() -> None:
    partition = taken(1, 2, 3, 4)
    assert finish(partition, 1, 4) == 2
    assert partition.give_back({2}) == 2
    assert finish(partition, 3) is None
    assert [partition.take((offset, 0)) for offset in (2, 3, 4, 5)] == [True, False, False, True]
    assert finish(partition, 2) == 5
    assert finish(partition, 5) == 6


def test_who_gives_back_twice_reads_from_the_lower() -> None:
    partition = taken(1, 2, 3)
    assert partition.give_back({3}) == 3
    assert partition.give_back({1}) == 1
    assert partition.give_back({2}) == 1
    assert partition.give_back({2}) is None
    assert [partition.take((offset, 0)) for offset in (1, 2, 3)] == [True] * 3


def test_what_was_given_back_and_deleted_hinders_nobody() -> None:
    partition = taken(1, 2, 3)
    partition.give_back({1, 2})
    assert not partition.take((3, 0))
    assert finish(partition, 3) == 4


def test_what_is_known_to_be_done_is_not_handed_over() -> None:
    partition = Partition([(1, 0), (3, 0)])
    assert [partition.take((offset, 0)) for offset in (1, 2, 3)] == [False, True, False]
    assert finish(partition, 2) == 4
    assert not partition.uncommitted


def test_a_topic_that_is_made_anew_has_other_messages_at_its_offsets() -> None:
    partition = Partition([(1, 1000)])
    assert partition.take((1, 2000))


def test_what_is_done_and_not_committed_is_told_to_the_next_assignment() -> None:
    partition = taken(1, 2, 3)
    assert finish(partition, 3) == 1
    partition.know([(7, 0)])
    assert partition.uncommitted == {(3, 0), (7, 0)}
