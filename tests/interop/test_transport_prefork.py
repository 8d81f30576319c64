"""A stock worker with the prefork pool over the SQLite transport: children, crashes, leases."""

from __future__ import annotations

from typing import Any

import pytest
from tests.acceptance.processes import Process, descendants
from tests.interop.conftest import Stock, wait_until

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def worker(stock: Stock) -> Process:
    return stock.worker("-P", "processes", "-c", "2", "--max-tasks-per-child", "4", "-n", "first@test")


def result(handle: Any) -> Any:
    return handle.get(timeout=15, interval=0.02)


def test_children_run_tasks_and_publish_their_own(stock: Stock, worker: Process) -> None:
    handles = [stock.send("nested") for _ in range(6)]

    assert [result(stock.app.AsyncResult(result(handle))) for handle in handles] == [23] * 6


def test_children_that_replace_others_work(stock: Stock, worker: Process) -> None:
    """They are forked while their parent consumes, with the database open."""
    before = {child.pid for child in descendants(worker.pid)}

    assert [result(stock.send("nested")) for _ in range(12)]

    assert before.isdisjoint(wait_until(lambda: {child.pid for child in descendants(worker.pid)} - before))
    assert result(stock.send("add", 1, 1)) == 2


def test_a_task_may_run_longer_than_the_lease(stock: Stock, worker: Process) -> None:
    stock.close_gate()
    handle = stock.send("wait_for_gate", "long")
    wait_until(stock.notes)
    # Delayed by more than the lease: when this has run, the other's lease would have ended.
    assert result(stock.send("add", 1, 1, countdown=2.5)) == 2
    stock.open_gate()

    assert result(handle) == "long"
    assert stock.notes() == ["long first"]


def test_the_tasks_of_a_killed_worker_run_again_when_their_leases_end(stock: Stock, worker: Process) -> None:
    stock.close_gate()
    handles = [stock.send("wait_for_gate", name) for name in ("one", "two")]
    wait_until(lambda: len(stock.notes()) == 2)
    worker.kill()
    worker.wait()
    stock.open_gate()

    second = stock.worker("-P", "processes", "-c", "2", "-n", "second@test")

    assert [result(handle) for handle in handles] == ["one", "two"]
    assert sorted(stock.notes()) == ["one again", "one first", "two again", "two first"]
    # A result is there before its message is acknowledged: killed in between, the worker would leave a lease behind.
    second.terminate()
    assert second.wait() == 0


def test_a_worker_that_stops_finishes_what_it_began_and_leaves_the_rest(stock: Stock) -> None:
    stock.close_gate()
    worker = stock.worker("-P", "processes", "-c", "1", "-n", "third@test")
    running = stock.send("wait_for_gate", "running")
    wait_until(stock.notes)
    others = [stock.send("add", number, 1) for number in range(3)]

    worker.terminate()
    worker.wait_for_line("Warm shutdown")
    stock.open_gate()
    assert worker.wait() == 0

    assert result(running) == "running"
    assert sum(other.ready() for other in others) + stock.waiting() == len(others)
