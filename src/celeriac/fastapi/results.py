"""The route of a task's result, and the wait for it, which the routes of exposed tasks share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

from celery import states
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from celeriac.errors import TaskNotFound
from celeriac.fastapi import shutdown
from celeriac.fastapi.access import Access
from celeriac.fastapi.alarm import Alarm, Ring
from celeriac.fastapi.endpoints import EXPIRED, UNAVAILABLE, UNKNOWN
from celeriac.fastapi.errors import describe, failed, revoked
from celeriac.fastapi.models import TaskPending, TaskResult
from celeriac.fastapi.texts import sayable
from celeriac.stores.base import Store
from celeriac.stores.records import TaskRecord

if TYPE_CHECKING:
    from celeriac.app import Celery

__all__ = ["LONGEST_WAIT", "RETRY_AFTER", "Wait", "add_result", "awaited", "problem_of_end", "responses"]

LONGEST_WAIT = 60.0  # seconds

#: When to ask again about a task that has not finished, as headers.
RETRY_AFTER = {"Retry-After": "1"}

#: ``?wait=``
Wait = Annotated[
    float,
    Query(ge=0, le=LONGEST_WAIT, allow_inf_nan=False, description="Seconds to wait for the task to finish."),
]


def responses(pending: Any) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's ``responses`` of a route that answers how a task has ended, with this model for one that has not."""
    return {
        202: {
            "model": pending,
            "description": "The task has not finished yet; `Retry-After` says when to ask again.",
            "headers": {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}},
        },
        **describe(
            _404=UNKNOWN,
            _409="The task was revoked; it may be retried.",
            _410=EXPIRED,
            _424="The task failed: `exc_type` and `exc_message` say how.",
            _503=UNAVAILABLE,
        ),
    }


def add_result(
    router: APIRouter, celery: Celery, access: Access, *, longest_wait: float, include_traceback: bool
) -> None:
    """``GET /{task_id}/result``: what the task returned, waiting for it if asked to."""

    @router.get("/{task_id}/result", response_model=TaskResult, responses=responses(TaskPending))
    async def get_task_result(
        request: Request, record: TaskRecord = access.record, wait: Wait = 0
    ) -> TaskResult | Response:
        """What the task returned. With `wait`, the answer comes as soon as the task has finished."""
        record = await awaited(celery.store, record, request, min(wait, longest_wait))
        if not record.ready:
            pending = TaskPending(task_id=record.id, state=record.state)
            return JSONResponse(pending.model_dump(), 202, RETRY_AFTER)
        if problem := problem_of_end(record, include_traceback=include_traceback):
            return problem
        return TaskResult(task_id=record.id, state=record.state, result=sayable(record.result))


async def awaited(store: Store, record: TaskRecord, request: Request, seconds: float) -> TaskRecord:
    """The record once it is ready, or as it is after so many seconds."""
    if record.ready or seconds <= 0:
        return record
    return await _finished(store, record.id, request, seconds)


def problem_of_end(record: TaskRecord, *, include_traceback: bool) -> Response | None:
    """The answer about a task that has ended, but not well."""
    if record.state == states.SUCCESS:
        return None
    return (
        revoked(record)
        if record.state == states.REVOKED
        else failed(record, include_traceback=include_traceback)
    )


async def _finished(store: Store, task_id: str, request: Request, seconds: float) -> TaskRecord:
    """The record once it is ready; as it is after ``seconds``, when the server stops, or when the client has gone."""
    deadline = asyncio.get_running_loop().time() + seconds
    over = shutdown.stopping()
    async with (
        store.watch(task_id, until_ready=True) as watch,
        Alarm(watch, over.wait() if over else None, _gone(request)) as alarm,
    ):
        record = await _record(store, task_id)
        while not record.ready:
            ring = await alarm.wait(max(0.0, deadline - asyncio.get_running_loop().time()))
            record = await _record(store, task_id)
            if ring is not Ring.CHANGED:
                break
        return record


async def _record(store: Store, task_id: str) -> TaskRecord:
    try:
        return (await store.get([task_id]))[task_id]
    except KeyError:
        raise TaskNotFound(task_id=task_id) from None


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
