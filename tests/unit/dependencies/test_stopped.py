"""Dependencies of tasks that run into a limit, are cancelled or handed back, and of those that will not stop."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import pytest
from anyio.to_thread import current_default_thread_limiter
from celery.exceptions import SoftTimeLimitExceeded
from fastapi import Depends
from tests.unit.dependencies.sessions import (
    SessionDependency,
    log,
    working,
)

from celeriac import Celery
from celeriac.errors import TaskRevoked

# -- how they are stopped ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["coroutine", "function"])
@pytest.mark.parametrize("limit", ["hard", "soft"])
async def test_a_time_limit_is_seen_by_the_dependencies(celery: Celery, kind: str, limit: str) -> None:
    options: dict[str, Any] = {"time_limit" if limit == "hard" else "soft_time_limit": 0.2}
    if kind == "coroutine":

        @celery.task(**options)
        async def hangs(session: SessionDependency) -> None:
            await asyncio.sleep(10)

        task: Any = hangs
    else:

        @celery.task(**options)
        def hangs_in_a_thread(session: SessionDependency) -> None:
            pause = threading.Event()
            for _ in range(100):
                pause.wait(0.05)

        task = hangs_in_a_thread

    async with working(celery):
        with pytest.raises(Exception, match=r"(TimeLimitExceeded|SoftTimeLimitExceeded|0\.2)"):
            await (await task.enqueue()).result(5)
    name = "TimeLimitExceeded" if limit == "hard" else "SoftTimeLimitExceeded"
    assert log == ["open", f"rollback: {name}", "close"]


@pytest.mark.parametrize("where", ["opening", "closing"])
async def test_opening_and_closing_are_within_the_limits(celery: Celery, where: str) -> None:
    async def slow(session: SessionDependency) -> AsyncIterator[None]:
        if where == "opening":
            await asyncio.sleep(10)
        yield
        await asyncio.sleep(10)

    @celery.task(time_limit=0.3)
    async def works(_: Annotated[None, Depends(slow)]) -> None:
        log.append("ran")

    async with working(celery):
        with pytest.raises(Exception, match=r"0\.3"):
            await (await works.enqueue()).result(5)  # type: ignore[call-arg]
    if where == "opening":
        assert log == ["open", "rollback: TimeLimitExceeded", "close"]
    else:
        assert log[:2] == ["open", "ran"]
        assert log[-1] == "close"
        assert "commit" not in log


@pytest.mark.parametrize("where", ["opening", "running", "closing"])
async def test_a_cancel_stops_it_wherever_it_is(celery: Celery, where: str) -> None:
    there = asyncio.Event()

    async def wait_if(place: str) -> None:
        if place == where:
            there.set()
            await asyncio.sleep(10)

    async def slow(session: SessionDependency) -> AsyncIterator[None]:
        await wait_if("opening")
        yield
        await wait_if("closing")

    @celery.task
    async def works(_: Annotated[None, Depends(slow)]) -> None:
        await wait_if("running")

    async with working(celery):
        handle = await works.enqueue()  # type: ignore[call-arg]
        await asyncio.wait_for(there.wait(), 5)
        assert await handle.cancel()
        with pytest.raises(TaskRevoked):
            await handle.result(5)
        assert await handle.state() == "REVOKED"
    assert log[0] == "open"
    assert log[-1] == "close"
    assert "commit" not in log
    if where != "closing":
        assert log == ["open", "rollback: TaskRevokedError", "close"]


@pytest.mark.parametrize("kind", ["coroutine", "function"])
@pytest.mark.parametrize("reason", ["cancel", "hard limit"])
async def test_a_task_that_was_stopped_is_not_retried_by_autoretry(
    celery: Celery, kind: str, reason: str
) -> None:
    running = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def hangs(session: SessionDependency) -> None:
        running.set()
        await asyncio.sleep(10)

    def hangs_in_a_thread(session: SessionDependency) -> None:
        loop.call_soon_threadsafe(running.set)
        pause = threading.Event()
        for _ in range(100):
            pause.wait(0.05)

    limit = 0.2 if reason == "hard limit" else None
    options: dict[str, Any] = {"autoretry_for": (Exception,), "retry_kwargs": {"countdown": 0}}
    task: Any = celery.task(time_limit=limit, **options)(hangs if kind == "coroutine" else hangs_in_a_thread)
    async with working(celery):
        handle = await task.enqueue()
        await asyncio.wait_for(running.wait(), 5)
        if reason == "cancel":
            assert await handle.cancel()
        with pytest.raises(TaskRevoked if reason == "cancel" else Exception):
            await handle.result(5)
        assert await handle.state() == ("REVOKED" if reason == "cancel" else "FAILURE")
    assert log.count("open") == 1


async def test_a_shutdown_closes_what_is_open(celery: Celery) -> None:
    there = asyncio.Event()

    @celery.task
    async def works(session: SessionDependency) -> None:
        there.set()
        await asyncio.sleep(10)

    async with working(celery):
        await works.enqueue()  # type: ignore[call-arg]
        await asyncio.wait_for(there.wait(), 5)
    assert log == ["open", "rollback: HandedBack", "close"]


# -- what cannot be stopped --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["coroutine", "function"])
async def test_a_clean_up_that_hangs_after_a_stop_is_cancelled_and_then_left_to_itself(
    celery: Celery, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celeriac.worker.coroutines._PATIENCE", 0.1)
    release, stubborn = asyncio.Event(), 0

    async def hangs() -> AsyncIterator[None]:
        nonlocal stubborn
        try:
            yield
        finally:
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    stubborn += 1

    async def works(_: Annotated[None, Depends(hangs)]) -> None:
        await asyncio.sleep(10)

    def works_in_a_thread(_: Annotated[None, Depends(hangs)]) -> None:
        pause = threading.Event()
        for _attempt in range(100):
            pause.wait(0.05)

    task: Any = celery.task(time_limit=0.2)(works if kind == "coroutine" else works_in_a_thread)
    async with working(celery):
        handle = await task.enqueue()
        with pytest.raises(Exception, match=r"0\.2"):
            await handle.result(5)
        assert await handle.state() == "FAILURE"
        assert stubborn == 2
        release.set()


async def test_a_soft_limit_may_be_caught_and_is_not_raised_again_in_the_clean_up(celery: Celery) -> None:
    async def slow_to_close(session: SessionDependency) -> AsyncIterator[None]:
        yield
        await asyncio.sleep(0.2)
        log.append("closed slowly")

    @celery.task(soft_time_limit=0.1)
    async def works(_: Annotated[None, Depends(slow_to_close)]) -> str:
        try:
            await asyncio.sleep(10)
        except SoftTimeLimitExceeded:
            return "caught"
        return "never"

    async with working(celery):
        assert await (await works.enqueue()).result(5) == "caught"  # type: ignore[call-arg]
    assert log == ["open", "closed slowly", "commit", "close"]


async def test_a_soft_limit_is_raised_where_a_dependency_opens(celery: Celery) -> None:
    async def slow(session: SessionDependency) -> None:
        await asyncio.sleep(10)

    @celery.task(soft_time_limit=0.1)
    async def works(_: Annotated[None, Depends(slow)]) -> None: ...

    async with working(celery):
        with pytest.raises(Exception, match=r"SoftTimeLimitExceeded|^$"):
            await (await works.enqueue()).result(5)  # type: ignore[call-arg]
    assert log == ["open", "rollback: SoftTimeLimitExceeded", "close"]


@pytest.mark.parametrize("fails", [False, True])
async def test_a_dependency_sees_why_the_clean_up_inside_it_was_stopped(celery: Celery, fails: bool) -> None:
    async def slow(session: SessionDependency) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await asyncio.sleep(10)

    @celery.task(time_limit=0.3)
    async def works(_: Annotated[None, Depends(slow)]) -> None:
        if fails:
            raise ValueError("failed")

    async with working(celery):
        with pytest.raises(Exception, match=r"0\.3"):
            await (await works.enqueue()).result(5)  # type: ignore[call-arg]
    assert log == ["open", "rollback: TimeLimitExceeded", "close"]


@pytest.mark.parametrize("limit", ["time_limit", "soft_time_limit"])
async def test_nothing_is_closed_while_a_thread_still_uses_it(celery: Celery, limit: str) -> None:
    stopped = threading.Event()

    def unit_of_work(session: SessionDependency) -> Iterator[None]:
        yield
        stopped.wait(0.6)
        session.add(1)

    @celery.task(**{limit: 0.2})
    async def works(_: Annotated[None, Depends(unit_of_work)]) -> None: ...

    async with working(celery):
        with pytest.raises(Exception, match=r"SoftTimeLimitExceeded|0\.2"):
            await (await works.enqueue()).result(5)  # type: ignore[call-arg]
    name = "TimeLimitExceeded" if limit == "time_limit" else "SoftTimeLimitExceeded"
    assert log == ["open", "session adds 1", f"rollback: {name}", "close"]


@pytest.mark.parametrize("how", ["cancelled", "soft limit", "hard limit"])
async def test_what_a_thread_opens_too_late_is_closed(celery: Celery, how: str) -> None:
    opening, go_on, closed = asyncio.Event(), threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def connect() -> Iterator[str]:
        loop.call_soon_threadsafe(opening.set)
        go_on.wait(10)
        try:
            yield "connection"
        finally:
            loop.call_soon_threadsafe(closed.set)

    options: dict[str, Any] = {"soft limit": {"soft_time_limit": 0.2}, "hard limit": {"time_limit": 0.2}}
    task: Any = celery.task(**options.get(how, {}))(_uses(connect))
    async with working(celery):
        handle = await task.enqueue()
        await opening.wait()
        if how == "cancelled":
            await handle.cancel()
        with pytest.raises(Exception, match=r"revoked|SoftTimeLimitExceeded|0\.2"):
            await handle.result(5)
        assert not closed.is_set()
        go_on.set()
        await asyncio.wait_for(closed.wait(), 5)
    assert log == []


async def test_what_waits_for_a_thread_when_it_is_cancelled_is_not_opened(celery: Celery) -> None:
    current_default_thread_limiter().total_tokens = 1
    opening, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def connect() -> Iterator[str]:
        log.append("open")
        loop.call_soon_threadsafe(opening.set)
        go_on.wait(10)
        yield "connection"
        log.append("close")

    task: Any = celery.task(_uses(connect))
    async with working(celery):
        first = await task.enqueue()
        await opening.wait()
        second = await task.enqueue()
        while (await second.record()).state != "STARTED":
            await asyncio.sleep(0.01)
        await second.cancel()
        with pytest.raises(TaskRevoked):
            await second.result(5)
        go_on.set()
        await first.result(5)
    assert log == ["open", "ran", "close"]


def _uses(connect: Any) -> Any:
    async def uses(_: Annotated[str, Depends(connect)]) -> None:
        log.append("ran")

    return uses
