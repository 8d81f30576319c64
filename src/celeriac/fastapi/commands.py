"""The routes that change something: cancel, retry, delete; and what is there while nobody has said who may."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from celery import states
from fastapi import APIRouter, Response

from celeriac.calls import new_id
from celeriac.errors import PublishTimeout, StoreError
from celeriac.fastapi.access import Access
from celeriac.fastapi.endpoints import EXPIRED, UNAVAILABLE, UNKNOWN
from celeriac.fastapi.errors import describe, problem
from celeriac.fastapi.idempotency import digest
from celeriac.fastapi.models import Cancelled, Retried
from celeriac.stores.records import TaskRecord

if TYPE_CHECKING:
    from celeriac.app import Celery

__all__ = ["add_closed_commands", "add_commands"]

#: Seconds that a request may take between reading a record and retrying its task.
_ONE_RETRY = 60.0

_CLOSED = (
    "Nobody may cancel, retry, replay or delete tasks here until celery.router() is given dependencies=[…] that check "
    "the caller, owner=Depends(…) that names them, or insecure=True."
)


def add_commands(router: APIRouter, celery: Celery, access: Access) -> None:
    """``POST /{task_id}/cancel``, ``POST /{task_id}/retry`` and ``DELETE /{task_id}``."""

    @router.post(
        "/{task_id}/cancel",
        status_code=202,
        response_model=Cancelled,
        responses=describe(_404=UNKNOWN, _410=EXPIRED, _503=UNAVAILABLE),
    )
    async def cancel_task(record: TaskRecord = access.record) -> Cancelled:
        """Cancel a task, whether it waits or runs. One that has finished stays as it is."""
        cancelled = await celery.handle(record.id).cancel()
        now = (await celery.store.get([record.id])).get(record.id, record)
        return Cancelled(task_id=record.id, state=now.state, cancelled=cancelled)

    @router.post(
        "/{task_id}/retry",
        status_code=202,
        response_model=Retried,
        responses=describe(
            _404=UNKNOWN,
            _409="The task has not finished, its record does not say what to run, or its uploads are gone.",
            _410=EXPIRED,
            _422="The recorded arguments do not fit the task any more.",
            _503=UNAVAILABLE,
        ),
    )
    async def retry_task(record: TaskRecord = access.record) -> Retried | Response:
        """Enqueue a finished task again, with its arguments, under its id."""
        if not record.ready:
            detail = f"The task is {record.state}: only a finished one can be retried."
            return problem(409, "task-not-finished", "Task not finished", detail, task_id=record.id)
        if record.name is None or record.args is None:
            detail = "The record does not say what to run."
            return problem(409, "task-not-replayable", "Task not replayable", detail, task_id=record.id)
        if not await _replay(celery, record):
            detail = "The task is being retried already."
            return problem(409, "task-not-finished", "Task not finished", detail, task_id=record.id)
        return Retried(task_id=record.id, state=states.PENDING)

    @router.delete(
        "/{task_id}",
        status_code=204,
        response_model=None,
        response_description="There is no record of the task any more.",
        responses=describe(
            _404=UNKNOWN, _409="The task has not finished: cancel it first.", _410=EXPIRED, _503=UNAVAILABLE
        ),
    )
    async def delete_task(record: TaskRecord = access.record) -> Response:
        """Delete the record and the events of a finished task."""
        if not record.ready:
            detail = f"The task is {record.state}: only a finished one can be deleted. Cancel it first."
            return problem(409, "task-not-finished", "Task not finished", detail, task_id=record.id)
        await celery.store.forget([record.id])
        return Response(status_code=204)


async def _replay(celery: Celery, record: TaskRecord) -> bool:
    """Enqueue a task that has ended again, unless somebody does who has seen the same end of it, in any process."""
    seen, token = (record.state, str(record.finished_at), len(record.attempts)), new_id()
    key = digest("retry", record.id, *seen)
    if not (await celery.store.claim_key(key, record.id, token, expires=_ONE_RETRY)).new:
        return False
    try:
        await celery.replay(record)
    except PublishTimeout:
        raise  # the broker may have it
    except Exception:
        with suppress(StoreError):
            await celery.store.release_key(key, token)
        raise
    return True


def add_closed_commands(router: APIRouter) -> None:
    """Answer 403 where the commands would be, and say how to open them."""

    @router.post("/{task_id}/cancel", include_in_schema=False)
    @router.post("/{task_id}/retry", include_in_schema=False)
    @router.delete("/{task_id}", include_in_schema=False)
    async def closed(task_id: str) -> Response:
        return problem(403, "commands-closed", "Not allowed", _CLOSED, task_id=task_id)

    @router.post("/dead-letters/replay", include_in_schema=False)
    async def closed_to_all() -> Response:
        return problem(403, "commands-closed", "Not allowed", _CLOSED)
