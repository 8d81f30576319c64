"""What a type checker makes of dependencies, without celeriac's plugin for mypy. Checked, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, assert_type

from fastapi import Depends, Request

from celeriac import Celery, Task, TaskContext, TaskHandle
from celeriac.dependencies import injected

celery = Celery("typing", broker="memory://typing")


class Session: ...


async def get_session() -> AsyncIterator[Session]:
    yield Session()


SessionDependency = Annotated[Session, Depends(get_session)]


@celery.task
async def with_default(user_id: int, session: Session = Depends(get_session)) -> str:  # noqa: B008
    return ""


@celery.task(bind=True)
def with_marker(
    self: Task[..., Any],
    user_id: int,
    session: SessionDependency = injected,
    *,
    context: TaskContext = injected,
    request: Request = injected,
) -> str:
    return ""


@celery.task
async def without(user_id: int, session: SessionDependency) -> str:
    return ""


async def calls() -> None:
    assert_type(await with_default.enqueue(1), TaskHandle[str])
    assert_type(await with_marker.enqueue(1), TaskHandle[str])
    assert_type(await with_marker.using(countdown=1).enqueue(user_id=1), TaskHandle[str])


async def refused() -> None:
    await with_default.enqueue("1")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    # It works, but nothing in the type system can say so.
    await without.enqueue(1)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
