"""The servers on Java that tests start do to kombu's clients what they claim to do."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from queue import Empty

import kombu
import pytest
from kombu.simple import SimpleQueue
from tests.services import KafkaServer, ZooKeeperServer

#: A member of a group that was killed is missed after two seconds, not after 45.
QUICK = {"kafka_consumer_config": {"session.timeout.ms": 2000, "heartbeat.interval.ms": 500}}


@contextlib.contextmanager
def opened(url: str, queue: str) -> Iterator[SimpleQueue]:
    with (
        kombu.Connection(url, transport_options=QUICK) as connection,
        connection.SimpleQueue(queue) as simple,
    ):
        yield simple
        # kombu leaves ZooKeeper's sessions open, and each knocks for ever at a server that is gone.
        if url.startswith("zookeeper:"):
            simple.channel.client.stop()


def put(url: str, queue: str, *bodies: str) -> None:
    with opened(url, queue) as simple:
        for body in bodies:
            simple.put(body)


def take(url: str, queue: str, count: int) -> list[str]:
    with opened(url, queue) as simple:
        messages = [simple.get(timeout=20) for _ in range(count)]
        for message in messages:
            message.ack()
        return [message.payload for message in messages]


def nothing_in(url: str, queue: str) -> bool:
    with opened(url, queue) as simple:
        try:
            simple.get_nowait()
        except Empty:
            return True
    return False


def test_kafka_carries_messages_to_a_queue_of_the_tests_own(kafka: KafkaServer, kafka_queue: str) -> None:
    put(kafka.url, kafka_queue, "one", "two")
    assert kafka_queue in kafka.topics()
    assert take(kafka.url, kafka_queue, 2) == ["one", "two"]


def test_kafka_keeps_messages_and_offsets(kafka_server: KafkaServer, kafka_queue: str) -> None:
    put(kafka_server.url, kafka_queue, "one", "two", "three")
    assert take(kafka_server.url, kafka_queue, 1) == ["one"]
    kafka_server.restart()
    assert take(kafka_server.url, kafka_queue, 1) == ["two"]
    kafka_server.kill()
    assert not kafka_server.running
    kafka_server.start()
    assert take(kafka_server.url, kafka_queue, 1) == ["three"]


def test_zookeeper_carries_messages_to_a_place_of_the_tests_own(
    zookeeper: ZooKeeperServer, zookeeper_url: str
) -> None:
    put(zookeeper_url, "queue", "one", "two")
    assert nothing_in(zookeeper.new_chroot(), "queue")
    assert take(zookeeper_url, "queue", 2) == ["one", "two"]
    assert nothing_in(zookeeper_url, "queue")


def test_zookeeper_keeps_messages(zookeeper_server: ZooKeeperServer) -> None:
    url = zookeeper_server.new_chroot()
    put(url, "queue", "one", "two", "three")
    assert take(url, "queue", 1) == ["one"]
    zookeeper_server.restart()
    assert take(url, "queue", 1) == ["two"]
    zookeeper_server.kill()
    assert not zookeeper_server.running
    zookeeper_server.start()
    assert take(url, "queue", 1) == ["three"]


def test_zookeeper_tells_its_sessions(zookeeper: ZooKeeperServer, zookeeper_url: str) -> None:
    with opened(zookeeper_url, "queue"):
        assert zookeeper.ask("cons").count("sid=0x") == 1
    assert zookeeper.ask("cons").count("sid=0x") == 0


def test_servers_that_are_not_installed_skip_the_test(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("REQUIRE_SERVICES", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # By its name in a string it would be the fixture.
    monkeypatch.setattr(sys.modules["tests.services.zookeeper"], "_JAR", tmp_path / "zookeeper.jar")
    with pytest.raises(pytest.skip.Exception, match="Kafka is not installed: `make services`"):
        KafkaServer()
    with pytest.raises(pytest.skip.Exception, match="ZooKeeper is not installed: `make services`"):
        ZooKeeperServer()
