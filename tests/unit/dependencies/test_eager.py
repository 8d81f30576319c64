"""Dependencies where Celery's own tracer runs the task: ``task.apply()`` and ``task_always_eager``."""

import asyncio
import contextvars
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any
from uuid import uuid4

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from fastapi import Depends, FastAPI, Request

from celeriac import Celery, TaskContext
from celeriac.task import Task

log: list[str] = []
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    log.clear()


@pytest.fixture
def celery() -> Celery:
    url = f"memory://{uuid4()}"
    app = Celery("eager", broker=url, backend=url, set_as_current=False)
    app.fastapi_app = FastAPI()
    _ = app.conf.task_always_eager  # reading the configuration reads files, and no test here is about that
    return app


async def get_number(request: Request) -> AsyncIterator[int]:
    token = variable.set("set")
    log.append("open")
    try:
        yield int(request.headers.get("x-number", "7"))
        log.append("commit")
    except Exception as exc:
        log.append(f"rollback: {type(exc).__name__}")
        raise
    finally:
        log.append("close")
        variable.reset(token)


def get_blocking() -> Iterator[str]:
    yield "blocking"
    log.append("close blocking")


Number = Annotated[int, Depends(get_number)]


def make(celery: Celery, kind: str, **options: Any) -> Any:
    if kind == "coroutine":

        @celery.task(name="add", bind=True, **options)
        async def add(
            self: Task[..., Any],
            value: int,
            number: Number,
            text: Annotated[str, Depends(get_blocking)],
            context: TaskContext,
        ) -> list[Any]:
            log.append(f"{self.request.id == context.id} {variable.get()} {text}")
            if value < 0:
                raise ValueError("negative")
            return [value + number]

        return add

    @celery.task(name="add", bind=True, **options)
    def add_in_this_thread(
        self: Task[..., Any],
        value: int,
        number: Number,
        text: Annotated[str, Depends(get_blocking)],
        context: TaskContext,
    ) -> list[Any]:
        log.append(f"{self.request.id == context.id} {variable.get()} {text}")
        if value < 0:
            raise ValueError("negative")
        return [value + number]

    return add_in_this_thread


@pytest.mark.parametrize("kind", ["coroutine", "function"])
def test_apply_runs_a_task_between_its_dependencies(celery: Celery, kind: str) -> None:
    add = make(celery, kind)
    assert add.apply((1,)).get() == [8]
    assert log == ["open", "True set blocking", "close blocking", "commit", "close"]
    assert variable.get() == "unset"


@pytest.mark.parametrize("kind", ["coroutine", "function"])
def test_apply_passes_headers_on(celery: Celery, kind: str) -> None:
    assert make(celery, kind).apply((1,), headers={"x-number": "3"}).get() == [4]


@pytest.mark.parametrize("kind", ["coroutine", "function"])
def test_what_the_task_raises_is_seen(celery: Celery, kind: str) -> None:
    add = make(celery, kind)
    with pytest.raises(ValueError, match="negative"):
        add.apply((-1,)).get()
    assert log == ["open", "True set blocking", "rollback: ValueError", "close"]


@pytest.mark.parametrize("kind", ["coroutine", "function"])
async def test_apply_in_a_coroutine(celery: Celery, kind: str, request: pytest.FixtureRequest) -> None:
    add = make(celery, kind)
    request.getfixturevalue("_no_blocking_calls").deactivate()  # it says that it blocks
    assert add.apply((1,)).get() == [8]


@pytest.mark.parametrize("kind", ["coroutine", "function"])
async def test_always_eager_opens_them_on_the_callers_loop(celery: Celery, kind: str) -> None:
    celery.conf.task_always_eager = True
    here = asyncio.get_running_loop()
    loops: list[bool] = []

    async def get_loop() -> None:
        loops.append(asyncio.get_running_loop() is here)

    add: Any = make(celery, kind)
    celery.fastapi_app.dependency_overrides[get_blocking] = get_loop  # type: ignore[union-attr]
    assert await (await add.enqueue(1)).result() == [8]
    assert loops == [True]
    assert log == ["open", "True set None", "commit", "close"]


@pytest.mark.parametrize("kind", ["coroutine", "function"])
def test_each_eager_retry_has_its_own(celery: Celery, kind: str) -> None:
    add = make(celery, kind, autoretry_for=(ValueError,), max_retries=2, retry_kwargs={"countdown": 0})
    with pytest.raises(ValueError, match="negative"):
        add.apply((-1,)).get()
    assert [line for line in log if line != "True set blocking"].count("open") == 3
    assert log.count("close") == 3


def test_no_thread_is_left(celery: Celery) -> None:
    before = set(threading.enumerate())
    make(celery, "function").apply((1,)).get()
    left = set(threading.enumerate()) - before
    assert [thread.name for thread in left if thread.name.startswith("celeriac")] == []
    assert len(left) <= 1


@pytest.mark.parametrize("where", ["opening", "closing"])
def test_what_is_raised_in_a_functions_thread_is_raised_in_its_dependencies(
    celery: Celery, where: str
) -> None:
    async def slow(_: Annotated[int, Depends(get_number)]) -> AsyncIterator[None]:
        if where == "opening":
            await asyncio.sleep(10)
            log.append("too late")
        yield
        await asyncio.sleep(10)

    @celery.task
    def works(_: Annotated[None, Depends(slow)]) -> None:
        log.append("ran")

    def limit(*_: Any) -> None:
        raise SoftTimeLimitExceeded

    former = signal.signal(signal.SIGALRM, limit)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        result = works.apply()
    finally:
        signal.signal(signal.SIGALRM, former)
    assert isinstance(result.result, SoftTimeLimitExceeded)
    assert log == ["open", *["ran"] * (where == "closing"), "rollback: SoftTimeLimitExceeded", "close"]
