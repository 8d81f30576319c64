"""What a type checker must accept, and must refuse. Checked by mypy and pyright, never run.

A line that must be refused carries an ignore; both checkers complain about an ignore that is not needed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, assert_type

from celeriac import Celery, Task, TaskContext, TaskHandle, TaskRecord, TaskRouter
from celeriac.propagation import owner, request_id

celery = Celery("typing", broker="memory://typing")
celery.conf.update(celeriac_propagate=["shop:tenant"])
celery.conf.task_time_limit = 60


@celery.task
async def greet(name: str, *, loud: bool = False) -> str:
    return name.upper() if loud else name


@celery.task
def add(x: int, y: int) -> int:
    return x + y


@celery.task(bind=True, max_retries=3)
async def fetch(self: Task[..., Any], url: str) -> bytes:
    raise self.retry(countdown=1)


@celery.task(bind=True)
def fetch_sync(self: Any, url: str, retries: int = 1) -> bytes:
    return b""


@celery.task(queue="words")
async def words(text: str) -> AsyncIterator[str]:
    yield text


async def calls() -> None:
    assert_type(await greet.enqueue("Ada"), TaskHandle[str])
    assert_type(await (await greet.enqueue("Ada", loud=True)).result(), str)
    assert_type(await (await add.enqueue(1, y=2)).result(timeout=1.0), int)
    assert_type(await (await fetch.enqueue("https://example.org")).result(), bytes)
    assert_type(await (await fetch_sync.using(countdown=1.5).enqueue("x", retries=2)).result(), bytes)
    assert_type(await (await words.enqueue("a b")).result(), None)
    assert_type(await celery.handle("id").record(), TaskRecord)
    assert_type(await celery.queue_size("celery"), int)
    assert_type(await celery.enqueue("by.name", (1,), priority=3), TaskHandle[Any])
    assert_type(await celery.enqueue_many([add.s(1, 2)]), list[TaskHandle[Any]])
    async for event in (await words.enqueue("a")).events(after=None):
        assert_type(event.id, str)


async def refused() -> None:
    await greet.enqueue(1)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await greet.enqueue()  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    await greet.enqueue("a", shout=True)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    await add.using(priority=1).enqueue("1", 2)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    add.using(prio=1)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    await fetch.enqueue()  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


routed = TaskRouter(prefix="reports.", queue="slow")
celery.include_router(routed, prefix="acme.", time_limit=60)
routed.include_router(TaskRouter(), prefix="inner.")


@routed.task
async def build(month: str, *, copies: int = 1) -> bytes:
    return month.encode() * copies


@routed.task(bind=True, max_retries=3)
def rebuild(self: Task[..., Any], month: str) -> bytes:
    raise self.retry(countdown=1)


@routed.stub()
async def index(month: str) -> int:
    raise NotImplementedError


@celery.stub(name="worker.tasks.archive", queue="slow")
def archive(month: str, keep: bool = True) -> list[str]:
    raise NotImplementedError


async def calls_of_routers_and_stubs() -> None:
    assert_type(await (await build.enqueue("2031-01", copies=2)).result(), bytes)
    assert_type(await (await build.using(owner=None).enqueue("2031-01")).result(), bytes)
    assert_type(await (await rebuild.enqueue("2031-01")).result(), bytes)
    assert_type(await (await index.enqueue("2031-01")).result(), int)
    assert_type(await archive.using(owner="ann").enqueue("2031-01", keep=False), TaskHandle[list[str]])
    assert_type(owner.get(), str | None)
    assert_type(request_id.get(), str | None)


async def refused_by_routers_and_stubs() -> None:
    await build.enqueue(1)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await index.enqueue()  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    await archive.enqueue("a", "b")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def identities(context: TaskContext) -> None:
    assert_type(context.owner, str | None)
    assert_type(context.request_id, str | None)


def exposing() -> None:
    router = celery.router(insecure=True)
    router.expose(greet, "/greetings", name="greet_somebody", options={"queue": "slow", "countdown": 1.5})
    router.expose(fetch, "/pages", idempotency="required", deadline=1.5)
    router.expose(greet, "/greetings", options={"queeue": "slow"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    router.expose(greet, "/greetings", idempotency="always")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    router.expose(len, "/lengths")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
