"""ZooKeeper as a source of messages: what is taken by one alone, what comes back, and what goes wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from tests.contract.sources import collect, holder, names, opened, outgoing, stock
from tests.services import ZooKeeperServer

from celeriac.brokers.kombu_sources.base import Taken
from celeriac.brokers.kombu_sources.zookeeper import ZooKeeperSource
from celeriac.errors import BrokerUnavailable

#: Seconds until who was killed is missed; not less, on machines that do other things as well.
OPTIONS = {"session_timeout": 3.0}


@pytest.fixture
def source(zookeeper_url: str) -> Iterator[ZooKeeperSource]:
    source = ZooKeeperSource(zookeeper_url, options=OPTIONS)
    with opened(source):
        yield source


@pytest.fixture
def other(zookeeper_url: str) -> Iterator[ZooKeeperSource]:
    source = ZooKeeperSource(zookeeper_url, options=OPTIONS)
    with opened(source):
        yield source


def test_stock_clients_share_nodes_and_envelope(zookeeper_url: str, source: ZooKeeperSource) -> None:
    source.put([*outgoing("queue", "low", priority=1), *outgoing("queue", "high", priority=8)])
    with stock(zookeeper_url, "queue") as theirs:
        found = [theirs.get(timeout=5) for _ in range(2)]
        for message in found:
            message.ack()
        assert [message.headers["id"] for message in found] == ["high", "low"]
        theirs.put(1, headers={"id": "theirs-low"}, priority=2)
        theirs.put(1, headers={"id": "theirs-high"}, priority=7)
    assert names(collect(source, "queue", 2)) == ["theirs-high", "theirs-low"]


def test_stock_consumers_do_not_see_what_is_taken(zookeeper_url: str, source: ZooKeeperSource) -> None:
    source.put(outgoing("queue", *range(4)))
    taken = source.take(["queue"], 2, 1.0)
    with stock(zookeeper_url, "queue") as theirs:
        found = [theirs.get(timeout=5) for _ in range(2)]
        assert theirs.channel._size("queue") == 0  # qsize() fails in kombu 5.7
    assert names(taken) == ["0", "1"]
    assert [message.headers["id"] for message in found] == ["2", "3"]
    source.finish(taken)


def test_takers_race_and_each_message_has_one(
    zookeeper_url: str, source: ZooKeeperSource, other: ZooKeeperSource
) -> None:
    source.put(outgoing("queue", *range(300)))
    got: list[Taken] = []

    def take(taker: ZooKeeperSource) -> None:
        while taken := taker.take(["queue"], 7, 0.1):
            taker.finish(taken)
            got.extend(taken)

    threads = [threading.Thread(target=take, args=[taker]) for taker in (source, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names(got), key=int) == [str(n) for n in range(300)]


def test_what_is_given_back_is_where_it_was(source: ZooKeeperSource, other: ZooKeeperSource) -> None:
    source.put(outgoing("queue", *range(4)))
    taken = source.take(["queue"], 3, 1.0)
    source.finish(taken[:1])
    source.give_back(taken[1:])
    assert other.size("queue") == 3
    assert names(collect(other, "queue", 3)) == ["1", "2", "3"]


def test_who_closes_leaves_what_it_had_to_others(source: ZooKeeperSource, other: ZooKeeperSource) -> None:
    source.put(outgoing("queue", *range(3)))
    assert other.take(["other"], 1, 0.0) == []
    taken = collect(source, "queue", 3)
    source.finish(taken[1:2])
    begun = time.monotonic()
    source.close()
    assert names(collect(other, "queue", 2)) == ["0", "2"]
    assert time.monotonic() - begun < 2


def test_a_killed_takers_messages_come_back(source: ZooKeeperSource) -> None:
    source.put(outgoing("queue", *range(10)))
    with holder(source, "queue", 10) as process:
        assert source.size("queue") == 0
        process.kill()
        killed = time.monotonic()
        assert names(collect(source, "queue", 10)) == [str(n) for n in range(10)]
        assert time.monotonic() - killed < 8


def test_what_was_finished_after_a_session_does_not_come_again(source: ZooKeeperSource) -> None:
    source.put(outgoing("queue", *range(3)))
    taken = collect(source, "queue", 3)
    source.close()
    with pytest.raises(Exception, match="session has ended"):
        source.finish(taken[:2])
    source.open()
    source.finish(taken[:2])
    assert names(collect(source, "queue", 1)) == ["2"]


def test_a_higher_priority_that_comes_later_goes_first(source: ZooKeeperSource) -> None:
    source.put(outgoing("queue", *range(5), priority=3))
    assert names(source.take(["queue"], 1, 1.0)) == ["0"]
    source.put(outgoing("queue", "urgent", priority=9))
    deadline = time.monotonic() + 5
    seen: list[str] = []
    while "urgent" not in seen and time.monotonic() < deadline:
        seen += names(source.take(["queue"], 1, 0.5))
        source._news.wait(0.25)
    assert "urgent" in seen[:3]


def test_several_queues_have_their_share(source: ZooKeeperSource) -> None:
    for queue in ("one", "two", "deep/er"):
        source.put(outgoing(queue, *range(10)))
    taken = source.take(["one", "two", "deep/er"], 6, 1.0)
    assert [each.queue for each in taken].count("deep/er") == 2
    assert len(taken) == 6


def test_purging(source: ZooKeeperSource) -> None:
    assert source.size("queue") == source.purge("queue") == 0
    source.put(outgoing("queue", *range(20)))
    taken = source.take(["queue"], 5, 1.0)
    assert source.purge("queue") == 15
    source.finish(taken)
    assert source.take(["queue"], 5, 0.1) == []


def test_a_queue_that_somebody_deletes_is_made_anew(zookeeper_url: str, source: ZooKeeperSource) -> None:
    source.put(outgoing("queue", "one"))
    source.finish(collect(source, "queue", 1))
    assert source.take(["queue"], 1, 0.1) == []
    with stock(zookeeper_url, "queue") as theirs:
        theirs.queue.delete()
        source.put(outgoing("queue", "two"))
    taken = collect(source, "queue", 1)
    assert names(taken) == ["two"]
    with stock(zookeeper_url, "queue") as theirs:
        theirs.queue.delete()
        source.give_back(taken)
        assert theirs.get(timeout=5).headers["id"] == "two"


def test_what_cannot_be_put_is_said_before_anything_is(source: ZooKeeperSource) -> None:
    large = outgoing("queue", "small", "large")
    large[1].message.body = b"x" * 1_000_000
    with pytest.raises(BrokerUnavailable, match=r"larger than ZooKeeper takes .* send less") as raised:
        source.put(large)
    assert raised.value.permanent
    with pytest.raises(BrokerUnavailable, match=r"takes no queue of the name '\.\./x'"):
        source.put(outgoing("../x", "x"))
    assert source.size("queue") == 0


def test_the_largest_that_can_be_put_can_be_taken(source: ZooKeeperSource) -> None:
    large = outgoing("queue", "large")
    source._largest = 10**9
    size = len(source._drafted(large[0])[1])
    source._largest = 1_048_575 - 1024
    large[0].message.body = b"x" * ((source._largest - size) * 3 // 4)
    source.put([*large, *outgoing("queue", *range(150))])
    taken = collect(source, "queue", 151)
    source.give_back(taken[:1])
    source.finish([*taken[1:], *collect(source, "queue", 1)])


def test_servers_that_are_not_there() -> None:
    for url, sentence in (
        ("zookeeper://127.0.0.1:1/x", "cannot be reached: .*Connection refused"),
        ("zookeeper://nowhere.invalid/x", "cannot be reached: .*not known"),
    ):
        source = ZooKeeperSource(url)
        with pytest.raises(OSError) as raised:
            source.open()
        source.close()
        with pytest.raises(BrokerUnavailable, match=sentence):
            raise source.explained(raised.value)


def test_one_of_several_servers_is_enough(zookeeper: ZooKeeperServer) -> None:
    source = ZooKeeperSource(f"zookeeper://127.0.0.1:1/several;zookeeper://{zookeeper.address}")
    with opened(source):
        source.put(outgoing("queue", "one"))
        assert source.size("queue") == 1


def test_an_outage(zookeeper_server: ZooKeeperServer) -> None:
    url = zookeeper_server.new_chroot()
    one, two = (ZooKeeperSource(url, options=OPTIONS) for _ in range(2))
    with opened(one, two):
        one.put(outgoing("queue", "before"))
        two.finish(collect(two, "queue", 1))
        zookeeper_server.pause()
        begun = time.monotonic()
        with pytest.raises(Exception) as raised:
            one.put(outgoing("queue", "lost"))
        assert "cannot be reached" in str(one.explained(raised.value))
        one.close()
        assert time.monotonic() - begun < 9
        zookeeper_server.resume()
        zookeeper_server.restart()
        for each in (one, two):
            each.close()
            each.open()
        one.put(outgoing("queue", "after"))
        assert "after" in names(two.take(["queue"], 10, 5.0))
        zookeeper_server.stop()
        begun = time.monotonic()
        with pytest.raises(one.errors):
            one.put(outgoing("queue", "lost"))
        assert time.monotonic() - begun < 7
