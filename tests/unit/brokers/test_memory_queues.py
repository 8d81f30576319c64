"""Queues in memory, where the broker contract does not look: threads, listeners, stale entries."""

from __future__ import annotations

import threading

from celeriac.brokers.memory import MemoryQueues
from celeriac.sql.messages import Draft, Ending

NOW = 1_800_000_000.0


def test_threads_take_each_message_once() -> None:
    queues = MemoryQueues()
    seen: list[list[bytes]] = [[] for _ in range(4)]

    def produce(start: int) -> None:
        for n in range(start, start + 500):
            queues.insert([Draft("q", str(n))])

    def consume(mine: list[bytes]) -> None:
        while len(mine) < 500:
            taken = queues.take(["q"], min(7, 500 - len(mine)), 30.0, NOW)
            mine += [each.envelope for each in taken]
            assert queues.settle([Ending(each.tag) for each in taken]) == set()

    threads = [threading.Thread(target=produce, args=(start,)) for start in (0, 500, 1000, 1500)]
    threads += [threading.Thread(target=consume, args=(mine,)) for mine in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert sorted(int(each) for mine in seen for each in mine) == list(range(2000))
    assert queues.size("q", NOW + 1000) == 0


def test_listeners_hear_of_what_can_be_received() -> None:
    queues = MemoryQueues()
    heard: list[str] = []
    stop = queues.listen(lambda: heard.append("change"))
    queues.insert([Draft("q", "x")])
    assert heard
    heard.clear()
    (taken,) = queues.take(["q"], 1, 30.0, NOW)
    assert not heard

    queues.settle([Ending(taken.tag, 0)])

    assert heard
    heard.clear()
    stop()
    stop()
    queues.insert([Draft("q", "y")])
    assert not heard


def test_renewed_and_ended_leases_leave_no_second_copy() -> None:
    queues = MemoryQueues()
    queues.insert([Draft("q", "x")])
    (taken,) = queues.take(["q"], 1, 30.0, NOW)
    for minute in range(1, 5):
        # Each time the lease runs out, the message is ready for a moment, and is renewed before anybody takes it.
        assert queues.size("q", NOW + 60 * minute) == 1
        assert queues.renew([taken.tag], 30.0, NOW + 60 * minute) == set()
        assert queues.next_due() == NOW + 60 * minute + 30

    assert len(queues.take(["q"], 10, 30.0, NOW + 600)) == 1
    assert queues.take(["q"], 10, 30.0, NOW + 601) == []


def test_purge_forgets_what_stands_in_line() -> None:
    queues = MemoryQueues()
    queues.insert([Draft("q", "x"), Draft("q", "y", due=NOW + 10), Draft("r", "z")])

    assert queues.purge("q", NOW) == 2

    assert queues.next_due() is None
    assert queues.take(["q"], 10, 30.0, NOW + 100) == []
    assert queues.size("r", NOW) == 1
