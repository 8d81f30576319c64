"""A stock worker with the solo pool, remote control, events and beat, over the SQLite transport."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError
from tests.acceptance.processes import Process
from tests.interop.conftest import Stock, wait_until

from celeriac.sql.messages import Draft

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module", autouse=True)
def worker(stock: Stock) -> Process:
    return stock.worker("-P", "solo", "-n", "solo@test", "-E")


def result(handle: Any) -> Any:
    return handle.get(timeout=15, interval=0.02)


def test_a_task_runs_and_its_result_comes_back(stock: Stock) -> None:
    assert result(stock.send("add", 2, 3)) == 5


def test_a_countdown_is_waited_out_in_the_broker_not_in_the_worker(stock: Stock) -> None:
    started = time.monotonic()
    handle = stock.send("add", 1, 1, countdown=0.7)

    # The worker has nothing of it meanwhile, and the queue does not count it.
    assert stock.app.control.inspect(["solo@test"]).scheduled() == {"solo@test": []}
    assert stock.waiting() == 0
    assert time.monotonic() - started < 0.7

    assert result(handle) == 2
    assert time.monotonic() - started >= 0.7


def test_a_task_that_retries_comes_again(stock: Stock) -> None:
    assert result(stock.send("third_time")) == 2


def test_higher_priority_goes_first(stock: Stock) -> None:
    stock.close_gate()
    stock.send("wait_for_gate", "running")
    wait_until(stock.notes)
    stock.send("note", "low", priority=1)
    stock.send("note", "none")
    stock.send("note", "high", priority=9)
    stock.open_gate()

    wait_until(lambda: len(stock.notes()) == 4)
    assert stock.notes() == ["running first", "high", "low", "none"]


def test_chains_groups_and_chords_go_through(stock: Stock) -> None:
    add, total = stock.app.tasks["add"], stock.app.tasks["total"]

    assert result(chain(add.s(1, 2), add.s(3)).delay()) == 6
    assert result(group(add.s(number, 1) for number in range(3)).delay()) == [1, 2, 3]
    assert result(chord([add.s(number, 1) for number in range(3)])(total.s())) == 6


def test_inspect_ping_is_answered(stock: Stock) -> None:
    ping = stock.start("inspect", "ping", "-d", "solo@test")

    assert ping.wait() == 0
    assert "solo@test: OK" in ping.output


def test_control_commands_leave_nothing_behind(stock: Stock) -> None:
    assert stock.app.control.inspect(["solo@test"]).ping() == {"solo@test": {"ok": "pong"}}
    with stock.app.connection() as connection:
        queues = {queue for queue, _, _ in connection.default_channel.list_bindings()}

    assert not [queue for queue in queues if queue.endswith("reply.celery.pidbox")]


def test_a_revoked_task_does_not_run(stock: Stock) -> None:
    handle = stock.send("note", "must not be written", countdown=0.5)
    stock.app.control.revoke(handle.id)

    with pytest.raises(TaskRevokedError):
        result(handle)
    assert "must not be written" not in stock.notes()


def test_events_reach_a_receiver(stock: Stock) -> None:
    seen: dict[str, list[str]] = {}
    done = threading.Event()
    capturing = threading.Event()
    handle_id: list[str] = []

    def keep(event: dict[str, Any]) -> None:
        capturing.set()
        seen.setdefault(event.get("uuid", ""), []).append(event["type"])
        if handle_id and "task-succeeded" in seen.get(handle_id[0], ()):
            receiver.should_stop = True
            done.set()

    with stock.app.connection() as connection:
        receiver = stock.app.events.Receiver(connection, handlers={"*": keep})
        thread = threading.Thread(target=receiver.capture, kwargs={"timeout": 20, "wakeup": True})
        thread.start()
        assert capturing.wait(10)  # the worker answers the wake-up with a heartbeat
        handle_id.append(stock.send("add", 1, 2).id)
        assert done.wait(15)
        thread.join(10)

    assert seen[handle_id[0]] == ["task-received", "task-started", "task-succeeded"]
    with stock.app.connection() as connection:
        assert not [q for q, _, _ in connection.default_channel.list_bindings() if q.startswith("celeryev")]


def test_what_is_no_message_does_not_stop_the_worker(stock: Stock) -> None:
    with stock.app.connection() as connection:
        connection.transport.storage.put([Draft("celery", "{garbage", priority=9)])

    assert result(stock.send("add", 4, 4)) == 8


def test_celery_purge_empties_a_queue_and_says_how_many(stock: Stock) -> None:
    for number in range(3):
        stock.send("note", f"{number}", queue="unread")
    stock.send("note", "later", queue="unread", countdown=3600)

    purge = stock.start("purge", "--force", "--queues", "unread")

    assert purge.wait() == 0
    assert "Purged 4 messages" in purge.output
    assert stock.waiting("unread") == 0


def test_beat_publishes_what_is_due(stock: Stock) -> None:
    stock.close_gate()
    beat = stock.start("beat", "--loglevel=info")

    wait_until(lambda: stock.notes().count("beat") >= 3)
    beat.terminate()
    assert beat.wait() == 0


def test_the_worker_ends_warmly_and_its_mailbox_with_it(stock: Stock, worker: Process) -> None:
    worker.terminate()

    assert worker.wait() == 0
    with stock.app.connection() as connection:
        assert not [q for q, _, _ in connection.default_channel.list_bindings() if "pidbox" in q]
