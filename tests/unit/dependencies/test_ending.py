"""What dependencies see of how an attempt ends, and that each attempt has its own."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from celery import signals
from celery.exceptions import Ignore
from fastapi import Depends
from starlette.exceptions import HTTPException
from tests.unit.dependencies.sessions import (
    Session,
    SessionDependency,
    log,
    working,
)

from celeriac import Celery
from celeriac.task import Task

# -- how they end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["coroutine", "function"])
async def test_a_dependency_sees_what_the_task_raises(celery: Celery, kind: str) -> None:
    def fails_in_a_thread(session: SessionDependency) -> None:
        raise ValueError("bad row")

    async def fails(session: SessionDependency) -> None:
        raise ValueError("bad row")

    task = celery.task(fails if kind == "coroutine" else fails_in_a_thread)
    async with working(celery):
        handle = await task.enqueue()  # type: ignore[call-arg]
        with pytest.raises(ValueError, match="bad row"):
            await handle.result(5)
        record = await handle.record()
    assert log == ["open", "rollback: ValueError", "close"]
    assert record.traceback is not None
    assert "dependency_scope" not in record.traceback


async def test_a_commit_that_fails_fails_the_task(celery: Celery) -> None:
    async def session() -> AsyncIterator[Session]:
        yield Session()
        raise ConnectionError("the database is gone")

    @celery.task
    async def add(session: Annotated[Session, Depends(session)]) -> int:
        return session.add(1)

    async with working(celery):
        handle = await add.enqueue()  # type: ignore[call-arg]
        with pytest.raises(ConnectionError, match="the database is gone"):
            await handle.result(5)
        assert await handle.state() == "FAILURE"


async def test_an_exception_that_a_dependency_swallows_fails_the_task_all_the_same(celery: Celery) -> None:
    async def swallows() -> AsyncIterator[None]:
        try:
            yield
        except ValueError:
            log.append("swallowed")

    async def translates(_: Annotated[None, Depends(swallows)]) -> AsyncIterator[None]:
        try:
            yield
        except LookupError as exc:
            raise HTTPException(409, "translated") from exc

    @celery.task
    async def fails(what: str, _: Annotated[None, Depends(translates)]) -> None:
        raise ValueError("bad row") if what == "value" else LookupError("no row")

    async with working(celery):
        with pytest.raises(ValueError, match="bad row"):
            await (await fails.enqueue("value")).result(5)  # type: ignore[call-arg]
        with pytest.raises(HTTPException, match="translated"):
            await (await fails.enqueue("lookup")).result(5)  # type: ignore[call-arg]
    assert log == ["swallowed"]


async def test_what_was_open_is_closed_when_the_next_cannot_be_opened(celery: Celery) -> None:
    async def fails(session: SessionDependency) -> None:
        raise ConnectionError("no mail server")

    @celery.task
    async def never(mailer: Annotated[None, Depends(fails)]) -> None:
        log.append("ran")

    async with working(celery):
        with pytest.raises(ConnectionError, match="no mail server"):
            await (await never.enqueue()).result(5)  # type: ignore[call-arg]
    assert log == ["open", "rollback: ConnectionError", "close"]


@pytest.mark.parametrize("kind", ["coroutine", "function"])
async def test_each_attempt_has_its_own(celery: Celery, kind: str) -> None:
    ids: list[int] = []
    kept: list[Session] = []

    def once(session: Session) -> str:
        kept.append(session)
        ids.append(id(session))
        if len(ids) < 3:
            raise ConnectionError("try again")
        return "done"

    options: dict[str, Any] = {"autoretry_for": (ConnectionError,), "retry_kwargs": {"countdown": 0}}
    if kind == "coroutine":

        @celery.task(**options)
        async def works(session: SessionDependency) -> str:
            return once(session)

        task: Any = works
    else:

        @celery.task(**options)
        def works_in_a_thread(session: SessionDependency) -> str:
            return once(session)

        task = works_in_a_thread

    async with working(celery):
        assert await (await task.enqueue()).result(10) == "done"
    assert len(set(ids)) == 3
    assert log == ["open", "rollback: ConnectionError", "close"] * 2 + ["open", "commit", "close"]


@pytest.mark.parametrize("when", ["opening", "closing"])
async def test_what_a_dependency_raises_is_retried_by_autoretry(celery: Celery, when: str) -> None:
    attempts: list[int] = []

    async def flaky() -> AsyncIterator[None]:
        attempts.append(1)
        if when == "opening" and len(attempts) < 2:
            raise ConnectionError
        yield
        if when == "closing" and len(attempts) < 2:
            raise ConnectionError

    @celery.task(autoretry_for=(ConnectionError,), retry_kwargs={"countdown": 0})
    async def works(_: Annotated[None, Depends(flaky)]) -> str:
        return "done"

    async with working(celery):
        assert await (await works.enqueue()).result(10) == "done"  # type: ignore[call-arg]
    assert len(attempts) == 2


async def test_a_retry_and_an_ignore_stand_although_the_clean_up_fails(celery: Celery) -> None:
    async def fails_to_roll_back() -> AsyncIterator[None]:
        try:
            yield
        except Exception as exc:
            raise OSError("no rollback") from exc

    @celery.task(bind=True, max_retries=1)
    async def retries(self: Task[..., Any], _: Annotated[None, Depends(fails_to_roll_back)]) -> None:
        log.append(f"attempt {self.request.retries}")
        raise Ignore if self.request.retries else self.retry(countdown=0)

    ended = asyncio.Event()

    def on_postrun(state: str, **_: Any) -> None:
        log.append(state)
        if state == "IGNORED":
            ended.set()

    signals.task_postrun.connect(on_postrun)
    try:
        async with working(celery):
            await retries.enqueue()  # type: ignore[call-arg]
            await asyncio.wait_for(ended.wait(), 10)
    finally:
        signals.task_postrun.disconnect(on_postrun)
    assert log == ["attempt 0", "RETRY", "attempt 1", "IGNORED"]


async def test_function_scope_ends_before_request_scope(celery: Celery) -> None:
    def tells(name: str) -> Any:
        async def dependency() -> AsyncIterator[None]:
            yield
            log.append(name)

        return dependency

    @celery.task
    async def works(
        _a: Annotated[None, Depends(tells("function"), scope="function")],
        _b: Annotated[None, Depends(tells("request"))],
    ) -> None:
        log.append("ran")

    async with working(celery):
        await (await works.enqueue()).result(5)  # type: ignore[call-arg]
    assert log == ["ran", "function", "request"]
