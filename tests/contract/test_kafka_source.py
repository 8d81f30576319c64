"""Kafka as a source of messages: what is committed, what comes again, and what goes wrong."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.contract.sources import collect, holder, names, opened, outgoing, stock
from tests.services import KafkaServer

from celeriac.brokers.base import PartlyPublished
from celeriac.brokers.kombu_sources.kafka import KafkaSource
from celeriac.errors import BrokerUnavailable, ConfigurationError

#: A member that was killed is missed after two seconds.
QUICK = {"session.timeout.ms": 2000, "heartbeat.interval.ms": 500}
OPTIONS: dict[str, Any] = {"num_partitions": 1, "kafka_consumer_config": QUICK}


@pytest.fixture
def source(kafka: KafkaServer) -> Iterator[KafkaSource]:
    source = KafkaSource(kafka.url, options=OPTIONS)
    with opened(source):
        yield source


@pytest.fixture
def other(kafka: KafkaServer) -> Iterator[KafkaSource]:
    source = KafkaSource(kafka.url, options=OPTIONS)
    with opened(source):
        yield source


def test_stock_clients_share_topic_group_and_envelope(
    kafka: KafkaServer, kafka_queue: str, source: KafkaSource
) -> None:
    source.put(outgoing(kafka_queue, "ours"))
    with stock(kafka.url, kafka_queue, kafka_consumer_config=QUICK) as theirs:
        message = theirs.get(timeout=20)
        assert message.headers["id"] == "ours"
        message.ack()
        theirs.put({"theirs": 1}, headers={"id": "theirs"})
    assert names(collect(source, kafka_queue, 1)) == ["theirs"]


def test_only_what_is_done_is_committed(kafka_queue: str, source: KafkaSource, other: KafkaSource) -> None:
    source.put(outgoing(kafka_queue, *range(5)))
    first, second, *rest = collect(source, kafka_queue, 5)
    assert source.size(kafka_queue) == 5
    source.finish([second])
    assert source.size(kafka_queue) == 5
    source.finish([first, rest[0]])
    assert source.size(kafka_queue) == 2
    source.close()
    assert names(collect(other, kafka_queue, 2)) == ["3", "4"]


def test_what_is_given_back_comes_again(kafka_queue: str, source: KafkaSource) -> None:
    source.put(outgoing(kafka_queue, *range(4)))
    taken = collect(source, kafka_queue, 4)
    source.finish(taken[2:3])
    source.give_back(taken[1:2])
    again = collect(source, kafka_queue, 1)
    assert names(again) == ["1"]
    source.finish([*again, taken[0], taken[3]])
    assert source.size(kafka_queue) == 0


def test_what_was_finished_during_an_outage_does_not_come_again(
    kafka_queue: str, source: KafkaSource
) -> None:
    source.put(outgoing(kafka_queue, *range(4)))
    taken = collect(source, kafka_queue, 4)
    source.close()
    source.open()
    source.finish(taken[:3])
    again = collect(source, kafka_queue, 1)
    assert names(again) == ["3"]
    source.finish(again)
    assert source.size(kafka_queue) == 0


def test_a_killed_members_share_goes_to_the_others(kafka_queue: str, source: KafkaSource) -> None:
    source.put(outgoing(kafka_queue, *range(10)))
    with holder(source, kafka_queue, 10) as process:
        process.kill()
        killed = time.monotonic()
        assert names(collect(source, kafka_queue, 10)) == [str(n) for n in range(10)]
        assert time.monotonic() - killed < 6


def test_members_share_what_is_not_finished(kafka: KafkaServer, kafka_queue: str) -> None:
    one, two = (
        KafkaSource(kafka.url, options={**OPTIONS, "num_partitions": 4}, lease=lease) for lease in (1, 2)
    )
    with opened(one, two):
        one.put(outgoing(kafka_queue, *range(40)))
        before = collect(one, kafka_queue, 40)
        one.finish([each for each in before if each.handle.number == 0])
        done = {name for each, name in zip(before, names(before), strict=True) if each.handle.number == 0}
        got: list[list[Any]] = [[], []]
        deadline = time.monotonic() + 20
        while sum(map(len, got)) < 40 - len(done) and time.monotonic() < deadline:
            for mine, source in zip(got, (two, one), strict=True):
                mine += source.take([kafka_queue], 100, 0.1)
        assert got[0], "the second member was given no partition"
        again = [name for mine in got for name in names(mine)]
        assert sorted([*again, *done], key=int) == [str(n) for n in range(40)]
        for mine, source in zip(got, (two, one), strict=True):
            source.finish(mine)
        one.finish(before)  # others have them by now
        assert one.size(kafka_queue) == 0


def test_purging_deletes_what_others_have_fetched_already(
    kafka_queue: str, source: KafkaSource, other: KafkaSource
) -> None:
    source.put(outgoing(kafka_queue, *range(100)))
    assert len(other.take([kafka_queue], 1, 10.0)) == 1
    assert source.purge(kafka_queue) == 100
    assert source.size(kafka_queue) == 0
    source.put(outgoing(kafka_queue, "new"))
    assert names(collect(other, kafka_queue, 1)) == ["new"]


def test_queues_that_nobody_has_used_are_empty(kafka_queue: str, source: KafkaSource) -> None:
    assert source.size(kafka_queue) == source.purge(kafka_queue) == 0


def test_several_topics_are_taken_from(kafka_queue: str, source: KafkaSource) -> None:
    queues = [f"{kafka_queue}-{n}" for n in range(3)]
    for queue in queues:
        source.put(outgoing(queue, queue))
    found: set[str] = set()
    deadline = time.monotonic() + 20
    while len(found) < 3 and time.monotonic() < deadline:
        found |= {each.queue for each in source.take(queues, 3, 1.0)}
    assert found == set(queues)


def test_what_cannot_be_put_is_said_before_anything_is(kafka_queue: str, source: KafkaSource) -> None:
    large = outgoing(kafka_queue, "small", "large")
    large[1].message.body = b"x" * 1_000_000
    with pytest.raises(BrokerUnavailable, match=r"larger than Kafka takes .* send less") as raised:
        source.put(large)
    assert raised.value.permanent
    with pytest.raises(BrokerUnavailable, match="Kafka takes no queue of the name 'a b'"):
        source.put(outgoing("a b", "x"))
    assert source.size(kafka_queue) == 0


def test_says_which_are_there_when_the_servers_refuse_one(
    kafka: KafkaServer, kafka_queue: str, source: KafkaSource
) -> None:
    narrow = f"{kafka_queue}-narrow"
    creator = KafkaSource(kafka.url, options={"topic_config": {"max.message.bytes": "2000"}})
    with opened(creator):
        creator.put(outgoing(narrow, "small"))
    batch = [*outgoing(kafka_queue, "1"), *outgoing(narrow, "large")]
    batch[1].message.body = b"x" * 5000

    with pytest.raises(PartlyPublished, match=r"refused a message .* send less") as raised:
        source.put(batch)

    assert (raised.value.published, raised.value.permanent) == ({0}, True)
    assert names(collect(source, kafka_queue, 1)) == ["1"]


@pytest.mark.parametrize(
    "url, options, sentence",
    [
        (
            "confluentkafka://127.0.0.1:1",
            {},
            r"cannot be reached: Connect to .* failed: Connection refused\.$",
        ),
        ("kafka://nowhere.invalid", {}, r"cannot be reached: Failed to resolve 'nowhere.invalid:9092'"),
        ("", {"security_protocol": "ssl"}, "There is no TLS connection .* check that the port speaks TLS"),
        (
            "",
            {"security_protocol": "sasl_plaintext", "sasl_mechanism": "PLAIN"},
            "refused the login: check user",
        ),
    ],
)
def test_servers_that_cannot_be_used(
    kafka: KafkaServer, url: str, options: dict[str, Any], sentence: str
) -> None:
    source = KafkaSource(url or kafka.url.replace("//", "//user:secret@"), options=options)
    try:
        with pytest.raises(Exception) as raised:
            source.open()
        explained = str(source.explained(raised.value))
    finally:
        source.close()
    assert re.search(sentence, explained), explained
    assert "secret" not in explained


def test_something_else_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_answer_as_rabbitmq, args=(server,), daemon=True).start()
        source = KafkaSource(f"kafka://127.0.0.1:{server.getsockname()[1]}")
        try:
            with pytest.raises(Exception) as raised:
                source.open()
            error = source.explained(raised.value)
        finally:
            source.close()
    assert "does not speak Kafka's protocol: check the port" in str(error)


def _answer_as_rabbitmq(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"AMQP\0\0\x09\x01")


def test_settings_that_the_driver_does_not_know(kafka: KafkaServer) -> None:
    source = KafkaSource(kafka.url, options={"kafka_common_config": {"bogus": 1}})
    with pytest.raises(ConfigurationError, match='No such configuration property: "bogus"'):
        source.open()


def test_topics_that_cannot_be_made(kafka: KafkaServer, kafka_queue: str) -> None:
    source = KafkaSource(kafka.url, options={"replication_factor": 3})
    with opened(source):
        with pytest.raises(Exception) as raised:
            source.put(outgoing(kafka_queue, "x"))
        assert "Set replication_factor in broker_transport_options" in str(source.explained(raised.value))


def test_an_outage(kafka_server: KafkaServer, kafka_queue: str) -> None:
    one, two = (KafkaSource(kafka_server.url, options=OPTIONS) for _ in range(2))
    with opened(one, two):
        one.put(outgoing(kafka_queue, "before"))
        two.finish(collect(two, kafka_queue, 1))
        kafka_server.stop()
        begun = time.monotonic()
        with pytest.raises(Exception) as raised:
            one.put(outgoing(kafka_queue, "lost"))
        assert time.monotonic() - begun < 4
        assert "cannot be reached: Connect to" in str(one.explained(raised.value))
        assert two.take([kafka_queue], 1, 0.1) == []
        kafka_server.start()
        one.put(outgoing(kafka_queue, "after"))
        assert names(collect(two, kafka_queue, 1)) == ["after"]
        kafka_server.pause()
        begun = time.monotonic()
        with pytest.raises(Exception) as raised:
            one.put(outgoing(kafka_queue, "silent"))
        assert time.monotonic() - begun < 8
        kafka_server.kill()
