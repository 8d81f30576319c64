"""The two routes of a task that is exposed: one that enqueues it, and one that tells how it stands."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic_core import PydanticSerializationError

from celeriac.errors import InvalidArguments, TaskNotFound
from celeriac.fastapi.access import Access
from celeriac.fastapi.bodies import CallBody
from celeriac.fastapi.endpoints import UNAVAILABLE
from celeriac.fastapi.errors import describe
from celeriac.fastapi.forms import FormBody
from celeriac.fastapi.links import path_of, seen_path, up
from celeriac.fastapi.models import TaskAccepted, TaskLinks, TaskStatus, error_of
from celeriac.fastapi.results import RETRY_AFTER, Wait, awaited, problem_of_end
from celeriac.stores.records import TaskRecord
from celeriac.task import Task

if TYPE_CHECKING:
    from celeriac.app import Celery

__all__ = ["ACCEPTED", "Exposed"]

F = TypeVar("F", bound=Callable[..., Any])

#: OpenAPI's ``responses`` of the route that enqueues.
ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {
        "description": "The task is enqueued; `Location` is where to ask how it stands.",
        "headers": {
            "Location": {"description": "A path of this server.", "schema": {"type": "string"}},
            "Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}},
        },
    },
    **describe(_503=UNAVAILABLE),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposed:
    """A task as two endpoints.

    ``records`` and ``commands`` say whether its router has the routes of records, and those that change something.
    """

    celery: Celery
    task: Task[..., Any]
    path: str
    access: Access
    options: Mapping[str, Any]
    longest_wait: float
    include_traceback: bool
    records: bool
    commands: bool

    def accepting(self) -> Callable[..., Any]:
        """The endpoint that enqueues the task, with a signature made from the task's. Raises ConfigurationError."""
        call_body = FormBody(self.task) if self.task.schema.takes_files else CallBody(self.task)

        async def accept(
            request: Request, response: Response, caller: str | None, body: Any = None
        ) -> TaskAccepted:
            args, kwargs = self._dump(call_body, body)
            options = {**self.options, **({} if caller is None else {"owner": caller})}
            handle = await self.task.submit(args, kwargs, options)
            return self._accepted(request, response, handle.id, "PENDING")

        more = [] if call_body.parameter is None else [call_body.parameter]
        return _with_parameters(accept, _parameter("caller", self.access.caller), *more)

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

        return _with_parameters(status, _parameter("record", self.access.record))

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
            return self.task.schema.dump(*call_body.arguments(body))
        except InvalidArguments as exc:
            # They came as this request's body, so this is FastAPI's to answer, in its own form.
            errors = [{**error, "loc": call_body.place(tuple(error["loc"]))} for error in exc.errors]
            raise RequestValidationError(
                errors or [{"type": "value_error", "loc": ("body",), "msg": str(exc), "input": None}]
            ) from exc

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
        "result": record.result if record.state == "SUCCESS" else None,
        "error": error_of(record),
    }
    try:
        # Read and written by the type: records hold fields by their names, and clients know them by their aliases.
        text = model.model_validate(known, from_attributes=True).model_dump_json(by_alias=True)
    except (ValidationError, PydanticSerializationError):
        # Another release of the task has returned it.
        text = TaskStatus[Any].model_validate(known, from_attributes=True).model_dump_json(by_alias=True)
    return text.encode()


def _parameter(name: str, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)


def _with_parameters(endpoint: F, *parameters: inspect.Parameter) -> F:
    """The endpoint, with these parameters in the signature that FastAPI reads instead of those of the same name."""
    own = inspect.signature(endpoint, eval_str=True)
    replaced = {each.name for each in parameters} | {"body"}
    kept = [each for each in own.parameters.values() if each.name not in replaced]
    endpoint.__signature__ = inspect.Signature([*kept, *parameters])  # type: ignore[attr-defined]
    return endpoint
