"""Celery's prefork pool for what computes, beside our worker for what waits: one app, one broker."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError
from tests.acceptance.processes import Launcher, Process, descendants
from tests.services import RedisServer

from celeriac import Celery
from celeriac.errors import TaskRevoked

pytestmark = pytest.mark.timeout(60)

_SOURCE = Path(__file__).parent / "apps" / "crossing.py"
_PATIENCE = 20.0


@dataclass
class Crossing:
    """Both workers, and a client that knows the routes and none of the tasks."""

    folder: Path
    client: Celery
    ours: Process
    prefork: Process

    def s(self, name: str, *args: Any, **options: Any) -> Any:
        return self.client.signature(name, args, options=options)

    async def result(self, name: str, *args: Any, **options: Any) -> Any:
        return await (await self.client.enqueue(self.s(name, *args, **options))).result(_PATIENCE)

    def children(self) -> set[int]:
        return {process.pid for process in descendants(self.prefork.pid)}


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def workers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crossing]:
    folder = tmp_path_factory.mktemp("crossing")
    shutil.copy(_SOURCE, folder)
    with ExitStack() as stack:
        url = f"sqlite:///{folder / 'celery.db'}"
        if request.param == "redis":
            url = stack.enter_context(RedisServer()).url
        launcher = Launcher()
        stack.callback(launcher.clean_up)

        def start(*options: str) -> Process:
            command = ("celery", "-A", "crossing", "worker", "--loglevel=info", *options)
            return launcher.start(command, cwd=folder, env={"CELERY_BROKER_URL": url})

        ours = start("-Q", "default", "-c", "20", "-n", "default@site")
        prefork = start("-P", "processes", "-Q", "cpu", "-c", "2", "-n", "cpu@site")
        for worker in (ours, prefork):
            worker.wait_for_line(r" ready\.")
        client = Celery("client", broker=url, set_as_current=False)
        client.conf.update(task_default_queue="default", task_routes={"cpu.*": {"queue": "cpu"}})
        yield Crossing(folder, client, ours, prefork)


@pytest.fixture
async def crossing(workers: Crossing) -> AsyncIterator[Crossing]:
    async with workers.client:
        yield workers


async def test_each_task_runs_where_its_queue_is_read(crossing: Crossing) -> None:
    assert await crossing.result("io.place") == [crossing.ours.pid, "default@site"]
    pid, hostname = await crossing.result("cpu.place")
    assert pid in crossing.children()
    assert hostname == "cpu@site"


async def test_a_coroutine_task_runs_in_a_child_process(crossing: Crossing) -> None:
    pid, hostname = await crossing.result("cpu.coroutine_place")
    assert pid in crossing.children()
    assert hostname == "cpu@site"


@pytest.mark.parametrize("queue", ["cpu", "default"])
async def test_handlers_that_are_coroutines_are_awaited(crossing: Crossing, queue: str) -> None:
    handle = await crossing.client.enqueue(crossing.s("cpu.noting", queue=queue))
    assert await handle.result(_PATIENCE) == ["before_start", "run"]
    noted = crossing.folder / f"{handle.id}.noted"
    async with asyncio.timeout(_PATIENCE):
        while not noted.exists() or noted.read_text() != "before_start run on_success":
            await asyncio.sleep(0.02)


async def test_a_chain_crosses_from_one_worker_to_the_other_and_back(crossing: Crossing) -> None:
    links = chain(crossing.s("io.add", 1, 2), crossing.s("cpu.square"), crossing.s("io.add", 1))
    handle = await crossing.client.enqueue(links)
    assert await handle.result(_PATIENCE) == 10
    following = chain(crossing.s("cpu.square", 4), crossing.s("io.add", 4), crossing.s("cpu.square"))
    handle = await crossing.client.enqueue(following)
    assert await handle.result(_PATIENCE) == 400
    record = await handle.record()
    assert (record.worker or "").startswith("cpu@site")


async def test_a_chord_gathers_what_both_have_done(crossing: Crossing) -> None:
    header = group(
        crossing.s("cpu.square", 2),
        crossing.s("io.add", 1, 1),
        crossing.s("cpu.square", 3),
        crossing.s("io.add", 3, 3),
    )
    handle = await crossing.client.enqueue(chord(header, crossing.s("io.total")))
    assert await handle.result(_PATIENCE) == 4 + 2 + 9 + 6


async def test_a_time_limit_kills_a_child_and_nobody_else(crossing: Crossing) -> None:
    before = crossing.children()
    handle = await crossing.client.enqueue(crossing.s("cpu.stuck", 60, time_limit=1))
    with pytest.raises(TimeLimitExceeded):
        await handle.result(_PATIENCE)
    assert await crossing.result("cpu.square", 5) == 25
    assert await crossing.result("io.add", 1, 1) == 2
    assert crossing.prefork.running
    assert crossing.ours.running
    async with asyncio.timeout(_PATIENCE):
        while len(before - crossing.children()) != 1 or len(crossing.children()) != len(before):
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("queue", ["cpu", "default"])
async def test_a_coroutine_may_clean_up_at_its_soft_limit(crossing: Crossing, queue: str) -> None:
    assert await crossing.result("cpu.patient", 30, True, queue=queue) == "cleaned up"
    with pytest.raises(SoftTimeLimitExceeded):
        await crossing.result("cpu.patient", 30, False, queue=queue)


async def test_a_cancelled_task_does_not_start_in_a_child_and_terminate_stops_one_that_runs(
    crossing: Crossing,
) -> None:
    running = [await crossing.client.enqueue(crossing.s("cpu.stuck", 60)) for _ in range(2)]
    async with asyncio.timeout(_PATIENCE):
        while {await handle.state() for handle in running} != {"STARTED"}:
            await asyncio.sleep(0.05)
    waiting = await crossing.client.enqueue(crossing.s("cpu.square", 2))
    assert await waiting.cancel()
    for handle in running:
        await asyncio.to_thread(crossing.client.control.revoke, handle.id, terminate=True)
        with pytest.raises(TaskRevoked):
            await handle.result(_PATIENCE)
    with pytest.raises(TaskRevoked):
        await waiting.result(_PATIENCE)
    assert await crossing.result("cpu.square", 3) == 9


async def test_a_task_that_kills_its_children_fails_in_the_end(crossing: Crossing) -> None:
    handle = await crossing.client.enqueue(crossing.s("cpu.killing"))
    with pytest.raises(WorkerLostError):
        await handle.result(_PATIENCE)
    assert len((await handle.record()).attempts) == 2
    assert await crossing.result("cpu.square", 3) == 9


async def test_a_task_that_is_put_back_does_not_kill_children_for_ever(crossing: Crossing) -> None:
    handle = await crossing.client.enqueue(crossing.s("cpu.killing_on"))
    with pytest.raises(WorkerLostError):
        await handle.result(_PATIENCE)
    assert len((await handle.record()).attempts) == 3
    assert await crossing.client.queue_size("cpu") == 0
    assert await crossing.result("cpu.square", 3) == 9


async def test_a_time_limit_in_a_thread_ends_the_task_and_leaves_the_thread(crossing: Crossing) -> None:
    handle = await crossing.client.enqueue(crossing.s("io.stuck_thread", 3, time_limit=0.5))
    with pytest.raises(TimeLimitExceeded):
        await handle.result(2.5)
    assert await crossing.result("io.stuck_thread", 0) == crossing.ours.pid
    crossing.ours.wait_for_line("its thread goes on")
