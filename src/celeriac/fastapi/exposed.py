"""The two routes of a task that is exposed: one that enqueues it, and one that tells how it stands."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from celery import states
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic_core import PydanticSerializationError

from celeriac import propagation
from celeriac.annotations import LOADED
from celeriac.eager import runs_eagerly
from celeriac.errors import InvalidArguments, PublishTimeout, TaskNotFound
from celeriac.fastapi.access import Access
from celeriac.fastapi.bodies import CallBody, refuse_unreadable
from celeriac.fastapi.endpoints import UNAVAILABLE
from celeriac.fastapi.errors import describe
from celeriac.fastapi.forms import FormBody
from celeriac.fastapi.idempotency import (
    REPLAYED,
    Idempotency,
    KeyedCall,
    OptionalKey,
    RequiredKey,
    contents_of,
    digest,
    with_contents,
)
from celeriac.fastapi.links import path_of, seen_path, up
from celeriac.fastapi.models import TaskAccepted, TaskLinks, TaskStatus, error_of
from celeriac.fastapi.results import RETRY_AFTER, Wait, awaited, problem_of_end
from celeriac.fastapi.texts import json_of, sayable
from celeriac.files import pending_in
from celeriac.stores.records import TaskRecord
from celeriac.task import Task

if TYPE_CHECKING:
    from celeriac.app import Celery

__all__ = ["Exposed"]

#: Seconds that storing the files of a call may take, where others wait for it.
_STORING = 60.0

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposed:
    """A task as two endpoints, of which the first is called ``name``.

    ``records`` and ``commands`` say whether its router has the routes of records, and those that change something.
    """

    celery: Celery
    task: Task[..., Any]
    name: str
    path: str
    access: Access
    options: Mapping[str, Any]
    idempotency: Idempotency
    idempotency_expires: float
    longest_wait: float
    include_traceback: bool
    records: bool
    commands: bool

    def accepting(self) -> Callable[..., Any]:
        """The endpoint that enqueues the task, with a signature made from the task's. Raises ConfigurationError."""
        call_body = FormBody(self.task) if self.task.schema.takes_files else CallBody(self.task, self.name)

        async def accept(
            request: Request, response: Response, caller: str | None, key: str | None = None, body: Any = None
        ) -> TaskAccepted:
            args, kwargs = self._dump(call_body, body)
            options = {**self.options, **({} if caller is None else {"owner": caller})}
            # What is run here and now has no record that a key could stand for.
            if key is None or await runs_eagerly(self.celery):
                handle = await self.task.submit(args, kwargs, options)
                return self._accepted(request, response, handle.id, states.PENDING)
            task_id, record = await (await self._keyed(key, args, kwargs, options)).once()
            if record is not None:
                response.headers[REPLAYED] = "true"
            return self._accepted(request, response, task_id, record.state if record else states.PENDING)

        more = [_parameter("caller", self.access.caller)]
        if self.idempotency != "off":
            if self.idempotency == "required":
                more.append(_parameter("key", annotation=RequiredKey))
            else:
                more.append(_parameter("key", None, OptionalKey))
        if call_body.parameter is not None:
            more.append(call_body.parameter)
        return _with_parameters(accept, more)

    @property
    def accepted(self) -> dict[int | str, dict[str, Any]]:
        """OpenAPI's ``responses`` of the endpoint that enqueues."""
        headers: dict[str, Any] = {
            "Location": {"description": "A path of this server.", "schema": {"type": "string"}},
            "Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}},
        }
        described = describe(_503=UNAVAILABLE)
        if self.idempotency != "off":
            headers[REPLAYED] = {
                "description": "`true` when an earlier request with this key has enqueued the task.",
                "schema": {"type": "string"},
            }
            described |= describe(_409="The `Idempotency-Key` was used with another body.")
        what = "The task is enqueued; `Location` is where to ask how it stands."
        return {202: {"description": what, "headers": headers}, **described}

    def telling(self) -> Callable[..., Any]:
        """The endpoint that tells how the task stands."""
        model = self.status_model

        async def status(
            request: Request, response: Response, record: TaskRecord, wait: Wait = 0
        ) -> Response:
            # Only tasks of this name are under this path, like only users are under /users.
            if record.name != self.task.name:
                raise TaskNotFound(task_id=record.id)
            seconds = min(wait, self.longest_wait)
            record = await awaited(self.celery.store, record, request, seconds)
            if record.ready and (problem := problem_of_end(record, include_traceback=self.include_traceback)):
                return problem
            content = _status(model, record)
            ready = record.ready
            answer = Response(
                content, 200 if ready else 202, None if ready else RETRY_AFTER, "application/json"
            )
            # What dependencies have set, as with every endpoint of FastAPI's.
            answer.raw_headers.extend(response.raw_headers)
            return answer

        return _with_parameters(status, [_parameter("record", self.access.record)])

    @property
    def status_model(self) -> type[TaskStatus[Any]]:
        """The model of the answer to how the task stands, with the task's own type of result."""
        result = self.task.schema.result_type
        try:
            TypeAdapter(result).json_schema(mode="serialization")
        except (PydanticUserError, PydanticInvalidForJsonSchema):
            return TaskStatus[Any]  # a type that pydantic does not know; the worker takes it, too
        # What is between the brackets is known at run time alone.
        return TaskStatus.__class_getitem__(result)  # type: ignore[return-value]

    def _dump(self, call_body: CallBody | FormBody, body: Any) -> tuple[list[Any], dict[str, Any]]:
        try:
            args, kwargs = self.task.schema.dump(*call_body.arguments(body))
        except InvalidArguments as exc:
            # They came as this request's body, so this is FastAPI's to answer, in its own form.
            errors = [{**error, "loc": call_body.place(tuple(error["loc"]))} for error in exc.errors]
            raise RequestValidationError(
                errors or [{"type": "value_error", "loc": ("body",), "msg": str(exc), "input": None}]
            ) from exc
        refuse_unreadable(args, kwargs)
        return args, kwargs

    async def _keyed(
        self, key: str, args: list[Any], kwargs: dict[str, Any], options: dict[str, Any]
    ) -> KeyedCall:
        task, celery = self.task, self.celery
        owner = options.get("owner", propagation.owner.get())
        given = options.get("deadline")
        deadline: float = celery.settings.publish_deadline if given is None else given
        call: Any = [args, kwargs]
        files = pending_in(args, kwargs) if task.schema.takes_files else ()
        if files:
            contents = await contents_of(files)
            call = [
                with_contents(args, contents),
                {each: with_contents(kwargs[each], contents) for each in kwargs},
            ]

        async def publish(task_id: str, seconds: float) -> None:
            submitted = task.submit(
                args, kwargs, {**options, "task_id": task_id, "deadline": min(seconds, deadline)}
            )
            try:
                # Storing the files has no deadline of its own, and here others count on one.
                async with asyncio.timeout(seconds if files else None):
                    await submitted
            except TimeoutError as exc:
                raise PublishTimeout from exc

        # A key must not outlive the record of its task, or the task would be taken for one that was never published.
        kept = celery.store.expires
        return KeyedCall(
            store=celery.store,
            key=digest(task.name, owner, key),
            fingerprint=digest(task.name, owner, call),
            deadline=deadline + (_STORING if files else 0.0),
            expires=self.idempotency_expires if kept is None else min(self.idempotency_expires, kept),
            publish=publish,
        )

    def _accepted(self, request: Request, response: Response, task_id: str, state: str) -> TaskAccepted:
        path = seen_path(request)
        base = up(path, self.path)
        status = f"{path.rstrip('/')}/{task_id}"
        events = cancel = None
        if self.records:
            events = f"{base}/{task_id}/events"
            cancel = f"{base}/{task_id}/cancel" if self.commands else None
        else:
            events, cancel = (
                path_of(request, "get_task_events", task_id),
                path_of(request, "cancel_task", task_id),
            )
        response.headers.update({"Location": status, **RETRY_AFTER})
        return TaskAccepted(
            task_id=task_id, state=state, links=TaskLinks(status=status, events=events, cancel=cancel)
        )


def _status(model: type[TaskStatus[Any]], record: TaskRecord) -> bytes:
    known = {
        "task_id": record.id,
        "state": record.state,
        "progress": record.progress,
        "result": sayable(record.result) if record.state == states.SUCCESS else None,
        "error": error_of(record),
    }
    try:
        # Read and written by the type: records hold fields by their names, and clients know them by their aliases.
        text = model.model_validate(known, from_attributes=True, **LOADED).model_dump_json(by_alias=True)
    except (ValidationError, PydanticSerializationError):
        # Another release of the task has returned it, or its error has what cannot be written.
        status = TaskStatus[Any].model_validate(known, from_attributes=True)
        text = json_of(status.model_dump(by_alias=True))
    return text.encode()


def _parameter(name: str, default: Any = inspect.Parameter.empty, annotation: Any = Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _with_parameters(endpoint: F, parameters: Sequence[inspect.Parameter]) -> F:
    """The endpoint, with these parameters in the signature that FastAPI reads instead of those that vary."""
    own = inspect.signature(endpoint, eval_str=True)
    replaced = {"body", "caller", "key", "record"}
    kept = [each for each in own.parameters.values() if each.name not in replaced]
    endpoint.__signature__ = inspect.Signature([*kept, *parameters])  # type: ignore[attr-defined]
    return endpoint
