"""Inline: ``enqueue`` returns when the task has run, through message, queue and worker."""

from __future__ import annotations

import asyncio
from datetime import date
from typing import Any

import pytest
from celery import group

from celeriac import Celery
from celeriac.errors import InvalidArguments
from celeriac.testing import in_memory


async def test_the_task_has_run_when_enqueue_returns(celery: Celery) -> None:
    seen: list[Any] = []

    @celery.task
    async def note(day: date, tags: tuple[str, ...]) -> date:
        seen.append((day, tags))
        return day

    async with in_memory(celery, mode="inline"):
        handle = await note.enqueue(date(2026, 1, 2), ("a", "b"))
        assert seen == [(date(2026, 1, 2), ("a", "b"))]
        assert await handle.result(0) == date(2026, 1, 2)
        states = [event.data["state"] async for event in handle.events() if event.kind == "state"]
        assert states == ["PENDING", "STARTED", "SUCCESS"]


async def test_arguments_travel_as_json(celery: Celery) -> None:
    @celery.task
    async def untyped(value):  # type: ignore[no-untyped-def]
        return value

    async with in_memory(celery, mode="inline"):
        assert await (await untyped.enqueue((1, 2))).result(0) == [1, 2]
        with pytest.raises(InvalidArguments):
            await untyped.enqueue(object())


async def test_retries_run_through_without_waiting(celery: Celery) -> None:
    attempts: list[int] = []

    @celery.task(bind=True, max_retries=3, autoretry_for=(ConnectionError,), retry_backoff=60)
    async def flaky(self: Any) -> str:
        attempts.append(self.request.retries)
        if len(attempts) < 3:
            raise ConnectionError
        return "there"

    async with in_memory(celery, mode="inline") as tasks:
        before = tasks.clock.now()
        assert await (await flaky.enqueue()).result(0) == "there"
        assert attempts == [0, 1, 2]
        assert tasks.clock.now() == before
        assert len(tasks.enqueued) == 1


async def test_what_a_task_enqueues_has_run_when_it_goes_on(celery: Celery) -> None:
    course: list[str] = []

    @celery.task
    async def child() -> None:
        course.append("child")

    @celery.task
    async def parent() -> None:
        course.append("parent")
        await child.enqueue()
        course.append("parent again")

    async with in_memory(celery, mode="inline") as tasks:
        handle = await parent.enqueue()
        course.append("test")
        assert course == ["parent", "child", "parent again", "test"]
        assert tasks.assert_enqueued(child).parent_id == handle.id
        course.clear()
        await celery.enqueue_many([child.s(), child.s()])
        await celery.enqueue(group(child.s(), child.s()))
        assert course == ["child"] * 4


async def test_a_delayed_task_waits_for_its_time(celery: Celery) -> None:
    ran: list[str] = []

    @celery.task
    async def note() -> None:
        ran.append("note")

    async with in_memory(celery, mode="inline") as tasks:
        await note.using(countdown=60).enqueue()
        assert ran == []
        await tasks.clock.advance(minutes=1)
        assert ran == ["note"]


async def test_a_failure_is_kept_or_raised(celery: Celery) -> None:
    @celery.task
    async def fail() -> None:
        raise LookupError("gone")

    async with in_memory(celery, mode="inline"):
        assert await (await fail.enqueue()).state() == "FAILURE"
    async with in_memory(celery, mode="inline", raise_errors=True):
        with pytest.raises(LookupError, match="gone"):
            await fail.enqueue()


async def test_what_code_in_a_thread_publishes_has_run_as_well(celery: Celery) -> None:
    course: list[str] = []

    @celery.task
    def child() -> None:
        course.append("child")

    @celery.task
    def parent() -> str:
        result = child.delay()
        course.append(result.state)
        return "done"

    async with in_memory(celery, mode="inline"):
        result = await asyncio.to_thread(parent.delay)
        assert course == ["child", "SUCCESS"]
        assert result.get() == "done"
        result = parent.delay()  # this blocks no loop, and cannot wait for it
        assert result.state == "PENDING"


def test_a_test_without_a_loop_publishes_inline(celery: Celery) -> None:
    @celery.task
    async def fail() -> None:
        raise LookupError("gone")

    with in_memory(celery, mode="inline"):
        assert fail.delay().state == "FAILURE"
    with in_memory(celery, mode="inline", raise_errors=True), pytest.raises(LookupError, match="gone"):
        fail.delay()
