"""The routes that read: the list, a record, its events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.exceptions import RequestValidationError

from celeriac.fastapi.access import Access
from celeriac.fastapi.errors import describe
from celeriac.fastapi.models import TaskOut, TaskPage, TracedTaskOut
from celeriac.fastapi.sse import EVENT_SCHEMA, EventsResponse
from celeriac.fastapi.stream import EventStream, open_stream
from celeriac.stores.records import RecordFilter, TaskRecord

if TYPE_CHECKING:
    from celeriac.app import Celery

__all__ = ["EXPIRED", "UNAVAILABLE", "UNKNOWN", "add_events", "add_list", "add_record"]

UNKNOWN = "There is no record of this task id, or it is somebody else's."
EXPIRED = "The record has expired, which is remembered for a while: `expired_at` says when."
UNAVAILABLE = "The store or the broker cannot be reached; `Retry-After` says when to ask again."


def add_list(router: APIRouter, celery: Celery, access: Access) -> None:
    """``GET ""``: the tasks, newest first."""

    @router.get("", response_model=TaskPage, responses=describe(_503=UNAVAILABLE))
    async def list_tasks(
        where: Annotated[RecordFilter, Depends(_filter)],
        owner: str | None = access.list_owner,
        cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.")] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> TaskPage:
        """The tasks, newest first, a page at a time."""
        try:
            page = await celery.store.list(_of_owner(where, owner), cursor, limit)
        except ValueError as exc:
            raise _invalid(("query", "cursor"), cursor, "no cursor of this list") from exc
        return TaskPage(items=[TaskOut.of(record) for record in page.records], next_cursor=page.cursor)


def add_record(router: APIRouter, access: Access, *, include_traceback: bool) -> None:
    """``GET /{task_id}``: everything that is known of one task."""
    model = TracedTaskOut if include_traceback else TaskOut

    @router.get(
        "/{task_id}",
        response_model=model,
        responses=describe(_404=UNKNOWN, _410=EXPIRED, _503=UNAVAILABLE),
    )
    async def get_task(record: TaskRecord = access.record) -> TaskOut:
        """Everything that is known of one task."""
        return model.of(record)


def add_events(
    router: APIRouter, celery: Celery, access: Access, *, heartbeat: float, slow_client: float
) -> None:
    """``GET /{task_id}/events``: what happens to one task, as it happens."""

    async def stream(
        record: TaskRecord = access.record,
        last_event_id: Annotated[str | None, Header(description="Sent by a browser that comes back.")] = None,
        after: Annotated[str | None, Query(description="The same, for a first connection.")] = None,
    ) -> AsyncIterator[EventStream]:
        # A dependency, because it can still answer 404 or 422, and because FastAPI ends it when the client goes away,
        # even in the middle of a write.
        position = last_event_id or after or None
        opening = open_stream(celery.store, record, position, heartbeat)
        del record  # with all its arguments, for as long as the stream lasts
        async with opening as events:
            try:
                await events.begin()
            except ValueError as exc:
                where = ("header", "Last-Event-ID") if last_event_id else ("query", "after")
                raise _invalid(where, position, "no event id of this task") from exc
            yield events

    opened: Any = Depends(stream)
    content = {EventsResponse.media_type: {"itemSchema": EVENT_SCHEMA}}

    @router.get(
        "/{task_id}/events",
        status_code=200,
        response_class=EventsResponse,
        responses={200: {"content": content}, **describe(_404=UNKNOWN, _410=EXPIRED, _503=UNAVAILABLE)},
        response_description=(
            "Events named `state`, `progress` and `value` with their data as JSON and their id for `Last-Event-ID`, "
            "then `end` once the task has finished."
        ),
    )
    async def get_task_events(events: EventStream = opened) -> Response:
        """What happens to one task, as it happens, until it has finished."""
        return EventsResponse(events, slow_client)


def _filter(
    state: Annotated[str | None, Query(description="One of Celery's states, or one of a task's own.")] = None,
    name: Annotated[str | None, Query(description="The task's name.")] = None,
    queue: str | None = None,
    since: Annotated[
        datetime | None, Query(description="Enqueued at or after; UTC unless it says so.")
    ] = None,
    until: Annotated[datetime | None, Query(description="Enqueued before; UTC unless it says so.")] = None,
    search: Annotated[
        str | None, Query(max_length=200, description="Text in the id, name or arguments.")
    ] = None,
) -> RecordFilter:
    return RecordFilter(
        state=state, name=name, queue=queue, since=_utc(since), until=_utc(until), search=search or None
    )


def _of_owner(where: RecordFilter, owner: str | None) -> RecordFilter:
    return where if owner is None else replace(where, owner=owner)


def _utc(time: datetime | None) -> datetime | None:
    if time is None or time.tzinfo is not None:
        return time
    return time.replace(tzinfo=UTC)


def _invalid(where: tuple[str, str], value: Any, message: str) -> RequestValidationError:
    # The form in which FastAPI says that a parameter is wrong, so that a client reads one form only.
    return RequestValidationError([{"type": "value_error", "loc": where, "msg": message, "input": value}])
