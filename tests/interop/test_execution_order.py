"""The life of one task: the same signals and handlers, with the same arguments, in the same order as in a stock worker.

Each scenario is run by a stock worker with threads and by two of ours: one has ``def``, one ``async def`` tasks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from tests.acceptance.processes import Launcher, Process
from tests.interop import execution_tasks
from tests.interop.conftest import wait_until
from tests.services import RedisServer

pytestmark = pytest.mark.timeout(120)

_ROOT = Path(__file__).parents[2]

KINDS = ("stock", "def", "async def")

#: Scenarios: the task, what it is called with, and what comes last in its notes, how often.
SCENARIOS: dict[str, tuple[str, dict[str, Any], str, int]] = {
    "success": ("succeed", {}, "task_postrun", 1),
    "failure": ("fail", {}, "task_postrun", 1),
    "throws": ("expected", {}, "task_postrun", 1),
    "retry to exhaustion": ("retry", {}, "task_postrun", 2),
    "retry without an exception": ("retry_bare", {}, "task_postrun", 2),
    "autoretry": ("autoretry", {}, "task_postrun", 2),
    "Ignore": ("ignore", {}, "task_postrun", 1),
    "Reject": ("reject", {}, "task_failure", 1),
    "Reject to requeue": ("requeue", {}, "task_postrun", 1),
    "ignored result": ("forgetful", {}, "task_postrun", 1),
    "result ignored by the call": ("succeed", {"ignore_result": True}, "task_postrun", 1),
    "ignored failure": ("forgetful", {"args": [True]}, "task_postrun", 1),
    "ignored failure, stored": ("forgetful_but", {}, "task_postrun", 1),
    "unserializable result": ("unserializable", {}, "task_postrun", 1),
    "a state of its own": ("states", {}, "task_postrun", 1),
    "calls another": ("calls", {}, "task_postrun", 1),
    "unknown task": ("nothing", {}, "task_unknown", 1),
    "expired": ("succeed", {"expires": -5}, "task_revoked", 1),
    "revoked": ("succeed", {}, "task_revoked", 1),
    "before_start raises": ("breaking", {"args": ["before_start"]}, "task_postrun", 1),
    "on_success and after_return raise": ("breaking", {"args": ["later"]}, "task_postrun", 1),
}

#: Here the record of ours says more than Celery's: that a task whose result is ignored has run, and how it ended.
_RECORDED = ("ignored result", "result ignored by the call", "ignored failure")

#: What our worker hands over in place of an instance of Celery's class; it has the same attributes.
_INSTEAD = {
    "ReceivedRequest": "Request",
    "TaskRequest": "Context",
    "MalformedMessage": "NoneType",  # Celery gives no reason
    "EventPublisher": "Heart",
    "NotRegistered": "KeyError",  # a subclass
}


class Workers:
    """A worker of each kind on one server, and what they have written down of each scenario."""

    def __init__(self, server: RedisServer, launcher: Launcher, folder: Path, acks_late: bool) -> None:
        self._folders = {kind: folder / kind.replace(" ", "-") for kind in KINDS}
        self._redis = redis.Redis.from_url(server.url, decode_responses=True)
        self.acks_late = acks_late
        for each in self._folders.values():
            each.mkdir()
        self._processes = {kind: self._start(launcher, server.url, kind) for kind in KINDS}
        for process in self._processes.values():
            process.wait_for_line(r" ready\.")
        self._publish(server.url)
        self.notes = {kind: self._read(kind) for kind in KINDS}

    def _start(self, launcher: Launcher, url: str, kind: str) -> Process:
        name = kind.replace(" ", "-")
        pool = ("-P", "threads", "-c", "1") if kind == "stock" else ("-c", "4")
        options = ("--loglevel=info", "-n", f"{name}@here", *pool)
        return launcher.start(
            [sys.executable, "-m", "celery", "-A", "tests.interop.execution_tasks", "worker", *options],
            cwd=_ROOT,
            env={
                execution_tasks.FOLDER: str(self._folders[kind]),
                execution_tasks.URL: url,
                execution_tasks.KIND: kind,
                "EXECUTION_ACKS_LATE": str(int(self.acks_late)),
                "PYTHONPATH": str(_ROOT),
            },
        )

    def _publish(self, url: str) -> None:
        with Celery(broker=url, set_as_current=False) as app:
            revoked = [task_id("revoked", kind) for kind in KINDS]
            assert len(app.control.revoke(revoked, reply=True, timeout=10, limit=len(KINDS))) == len(KINDS)
            for kind in KINDS:
                with app.producer_pool.acquire() as producer:
                    producer.publish({"no": "task"}, routing_key=kind.replace(" ", "-"))
                for scenario, (task, options, *_) in SCENARIOS.items():
                    app.send_task(
                        task, task_id=task_id(scenario, kind), queue=kind.replace(" ", "-"), **options
                    )
        for kind in KINDS:
            wait_until(lambda kind=kind: self._done(kind), timeout=40)
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.wait()

    def _done(self, kind: str) -> bool:
        notes = self._read(kind)
        for scenario, (task, _, last, times) in SCENARIOS.items():
            expected = times + 1 if self.acks_late and task == "requeue" else times
            told = [note["what"] for note in notes if note["task_id"] == task_id(scenario, kind)]
            if told.count(last) < expected:
                return False
        return any(note["what"] == "task_rejected" for note in notes)

    def _read(self, kind: str) -> list[dict[str, Any]]:
        path = self._folders[kind] / "notes"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def of(self, scenario: str, kind: str) -> list[dict[str, Any]]:
        """The notes of one task, from its arrival to its end."""
        return [note for note in self.notes[kind] if note["task_id"] == task_id(scenario, kind)]

    def meta(self, scenario: str, kind: str) -> dict[str, Any]:
        """What the result backend has at the end."""
        return json.loads(self._redis.get(f"celery-task-meta-{task_id(scenario, kind)}") or "{}")


def task_id(scenario: str, kind: str) -> str:
    return f"{scenario} / {kind}"


@pytest.fixture(scope="module", params=[False, True], ids=["acks early", "acks late"])
def workers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    launcher = Launcher()
    with RedisServer() as server:
        try:
            yield Workers(server, launcher, tmp_path_factory.mktemp("execution"), request.param)
        finally:
            launcher.clean_up()


def told(notes: list[dict[str, Any]], scenario: str) -> list[tuple[Any, ...]]:
    """The notes in a form that is equal for all kinds, where their order has to be."""
    found = []
    for note in notes:
        named = {key: _INSTEAD.get(value, value) for key, value in note["named"].items() if key != "task_id"}
        named.pop("id", None)
        found.append(
            (note["what"], _INSTEAD.get(note["sender"], note["sender"]), named, _state(note, scenario))
        )
    return found


def _state(note: dict[str, Any], scenario: str) -> str | None:
    if scenario in _RECORDED or (scenario, note["what"]) in (
        ("Reject", "task_postrun"),  # ours has recorded the failure by then
        ("unknown task", "task_unknown"),  # ours waits for a worker that knows it
    ):
        return None
    # STARTED is written without waiting for it.
    return "PENDING or STARTED" if note["state"] in ("PENDING", "STARTED") else str(note["state"])


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_tasks_life_is_told_as_by_a_stock_worker(workers: Workers, scenario: str, kind: str) -> None:
    theirs = [note for note in told(workers.of(scenario, "stock"), scenario) if "publish" not in note[0]]
    ours = [note for note in told(workers.of(scenario, kind), scenario) if "publish" not in note[0]]
    if scenario.startswith(("retry", "autoretry")):
        # The state that a second attempt finds depends on how far the first one's STARTED is behind.
        ours, theirs = ([note[:3] for note in notes] for notes in (ours, theirs))
    assert ours == theirs


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_message_is_announced_as_by_a_stock_client(workers: Workers, scenario: str, kind: str) -> None:
    """A retry is published when its attempt is settled; there the signals come later than a stock worker's."""
    theirs = [note[:3] for note in told(workers.of(scenario, "stock"), scenario) if "publish" in note[0]]
    ours = [note[:3] for note in told(workers.of(scenario, kind), scenario) if "publish" in note[0]]
    assert ours == theirs


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("scenario", [each for each in SCENARIOS if each not in _RECORDED])
def test_the_end_is_recorded_as_by_a_stock_worker(workers: Workers, scenario: str, kind: str) -> None:
    theirs, ours = workers.meta(scenario, "stock"), workers.meta(scenario, kind)
    if scenario == "unknown task":
        assert (theirs["status"], ours.get("status", "PENDING")) == ("FAILURE", "PENDING")
        return
    assert ours["status"] == theirs["status"]
    if theirs["status"] == "FAILURE" and scenario != "unserializable result":
        mine = json.dumps(ours["result"]).replace(task_id(scenario, kind), "")
        assert mine == json.dumps(theirs["result"]).replace(task_id(scenario, "stock"), "")
        # Ours says where a task rejected itself, too.
        assert ours["traceback"] or not theirs["traceback"]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_function_its_receivers_and_its_handlers_share_a_thread(workers: Workers, scenario: str) -> None:
    around = ("task_received", "task_revoked", "task_unknown", "before_task_publish", "after_task_publish")
    notes = [note for note in workers.of(scenario, "def") if note["what"] not in around]
    attempts: list[set[int]] = []
    for note in notes:
        if note["what"] == "task_prerun":
            attempts.append(set())
        attempts[-1].add(note["thread"])
    assert all(len(threads) == 1 for threads in attempts)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_worker_tells_of_itself_as_a_stock_worker(workers: Workers, kind: str) -> None:
    def life(of: str) -> list[tuple[Any, ...]]:
        notes = [note for note in workers.notes[of] if note["task_id"] is None]
        return [
            (what, sender.replace(of.replace(" ", "-"), ""), named)
            for what, sender, named, _ in told(notes, "")
        ]

    own = ("worker_process_init", "worker_process_shutdown")  # once, for the one process that there is
    theirs = life("stock")
    assert any(note[0] == "task_rejected" for note in theirs)
    assert [note for note in life(kind) if note[0] not in own] == theirs
    assert [note for note in life(kind) if note[0] in own] == [
        ("worker_process_init", "@here", {}),
        ("worker_process_shutdown", "@here", {"exitcode": 0, "pid": "int"}),
    ]
