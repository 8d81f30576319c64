"""Handlers of a task that are coroutine functions, where Celery's own tracer calls them."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from celeriac import Celery
from celeriac.worker.embedded import run_embedded


@pytest.fixture
def celery() -> Celery:
    return Celery("handlers", broker=f"memory://{uuid4()}", set_as_current=False)


def noting(app: Celery, seen: list[str]) -> Any:
    class Noting(app.Task):  # type: ignore[misc, name-defined]
        async def before_start(self, *_: object) -> None:
            seen.append("before_start")

        async def on_success(self, *_: object) -> None:
            seen.append("on_success")

        async def on_failure(self, *_: object) -> None:
            seen.append("on_failure")

        async def after_return(self, *_: object) -> None:
            seen.append("after_return")

    @app.task(base=Noting)
    async def task(fails: bool) -> None:
        seen.append("run")
        if fails:
            raise ValueError("too bad")

    return task


@pytest.mark.parametrize("fails", [False, True])
def test_they_are_awaited_by_apply(celery: Celery, fails: bool) -> None:
    seen: list[str] = []
    noting(celery, seen).apply((fails,))
    assert seen == ["before_start", "run", "on_failure" if fails else "on_success", "after_return"]


@pytest.mark.parametrize("fails", [False, True])
async def test_they_are_awaited_once_by_our_worker(celery: Celery, fails: bool) -> None:
    seen: list[str] = []
    task = noting(celery, seen)
    async with celery, run_embedded(celery, concurrency=1):
        handle = await task.enqueue(fails)
        if fails:
            with pytest.raises(ValueError, match="too bad"):
                await handle.result(5)
        else:
            await handle.result(5)
    assert seen == ["before_start", "run", "on_failure" if fails else "on_success", "after_return"]
