"""Tasks that tell what travelled with them. Does not import the app."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any

from celery.utils.log import get_task_logger
from travel_context import tenant

from celeriac import TaskContext, TaskRouter
from celeriac.propagation import owner, request_id

tasks = TaskRouter(prefix="travel.")
logger = get_task_logger(__name__)

Seen = list[str | None]


def seen() -> Seen:
    return [owner.get(), request_id.get(), tenant.get()]


@tasks.task
async def look(*_: Any) -> Seen:
    logger.info("looking")
    return seen()


@tasks.task
def look_in_thread(*_: Any) -> Seen:
    return seen()


@tasks.task
async def stream() -> AsyncIterator[Seen]:
    yield seen()


@tasks.task
async def pass_on(before: list[Seen]) -> list[Seen]:
    return [*before, seen()]


@tasks.task(bind=True, max_retries=1, default_retry_delay=0)
async def again(self: Any, context: TaskContext) -> Seen:
    if self.request.retries == 0:
        raise self.retry()
    assert [context.owner, context.request_id] == seen()[:2]
    return seen()


@tasks.task(autoretry_for=(ValueError,), max_retries=1, default_retry_delay=0, bind=True)
def again_by_itself(self: Any) -> Seen:
    if self.request.retries == 0:
        raise ValueError
    return seen()


@tasks.task
async def parent() -> list[str]:
    enqueued = await look.enqueue()
    return [enqueued.id, look.delay().id]


@tasks.task
def parent_in_thread() -> list[str]:
    return [look.delay().id]


@tasks.task
def modules() -> list[str]:
    return sorted({"travel_tasks", "travel_worker"} & set(sys.modules))
