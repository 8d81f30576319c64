"""Errors as answers: ``application/problem+json`` (RFC 9457), one table from our exceptions to statuses.

A task that failed answers 424 (Failed Dependency, RFC 4918) and not 500: the request was fine and so is the server,
it is the task that the answer depends on which failed, and asking again cannot help. A 5xx would set off the retries
and circuit breakers of every client and proxy on the way. A revoked task answers 409 and not 410: it may be retried,
so it is not gone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from kombu.exceptions import OperationalError

from celeriac import errors
from celeriac.fastapi.models import ErrorOut, Problem, error_of
from celeriac.fastapi.texts import sayable
from celeriac.stores.records import TaskRecord

__all__ = [
    "PROBLEM_JSON",
    "ProblemRoute",
    "add_handlers",
    "describe",
    "failed",
    "problem",
    "problem_of",
    "revoked",
]

PROBLEM_JSON = "application/problem+json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one kind of error answers. ``retry_after`` is in seconds."""

    status: int
    name: str
    title: str
    retry_after: int | None = None


_KINDS: Mapping[type[Exception], _Kind] = {
    errors.TaskExpired: _Kind(410, "task-expired", "Task expired"),
    errors.TaskNotFound: _Kind(404, "task-not-found", "Task not found"),
    errors.InvalidArguments: _Kind(422, "invalid-arguments", "Invalid arguments"),
    errors.KeyReused: _Kind(409, "idempotency-key-reused", "Idempotency key reused"),
    errors.TaskFailed: _Kind(424, "task-failed", "Task failed"),
    errors.TaskRevoked: _Kind(409, "task-revoked", "Task revoked"),
    errors.ResultTimeout: _Kind(504, "result-timeout", "Task not finished"),
    errors.StoreUnavailable: _Kind(503, "store-unavailable", "Store unavailable", retry_after=5),
    errors.BrokerUnavailable: _Kind(503, "broker-unavailable", "Broker unavailable", retry_after=5),
    errors.UploadTooLarge: _Kind(413, "upload-too-large", "Upload too large"),
    errors.UploadGone: _Kind(409, "upload-gone", "Upload gone"),
    errors.StorageUnavailable: _Kind(503, "storage-unavailable", "Storage unavailable", retry_after=5),
    errors.PublishTimeout: _Kind(503, "publish-timeout", "Publish timed out", retry_after=5),
}


class _ProblemResponse(JSONResponse):
    media_type = PROBLEM_JSON


def problem(
    status: int, name: str, title: str, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any
) -> Response:
    """An answer in problem form; ``more`` are members beside the standard ones, left out when ``None``."""
    body = Problem(type=f"urn:celeriac:problem:{name}", title=title, status=status, detail=detail, **more)
    content = sayable(jsonable_encoder(body, exclude_none=True))
    return _ProblemResponse(content, status, {"Cache-Control": "no-store", **(headers or {})})


def problem_of(exc: Exception) -> Response | None:
    """The answer to one of our errors, or ``None`` when ``exc`` has no place in the table."""
    kind = next((_KINDS[parent] for parent in type(exc).__mro__ if parent in _KINDS), None)
    return None if kind is None else _answer(exc, kind)


def _answer(exc: Exception, kind: _Kind, *, include_traceback: bool = False) -> Response:
    detail, headers = str(exc), {}
    if kind.retry_after is not None:
        # A driver's message may name hosts and users: those go to the log alone.
        _log.warning("%s: %s", kind.title, exc)
        detail = getattr(exc, "why", None) or str(type(exc)())
        headers["Retry-After"] = str(kind.retry_after)
    more: dict[str, Any] = {"task_id": getattr(exc, "task_id", None)}
    if isinstance(exc, errors.InvalidArguments):
        # What was passed in may be a secret or not be JSON: only where and why it does not fit.
        more["errors"] = [
            {key: error[key] for key in ("type", "loc", "msg") if key in error} for error in exc.errors
        ]
    if isinstance(exc, errors.TaskExpired):
        more["expired_at"] = exc.expired_at
    if isinstance(exc, errors.TaskFailed):
        more |= {"exc_type": exc.exc_type, "exc_message": exc.exc_message}
        more["traceback"] = exc.traceback if include_traceback else None
    return problem(kind.status, kind.name, kind.title, detail, headers=headers, **more)


def failed(record: TaskRecord, *, include_traceback: bool = False) -> Response:
    """The answer to a request for the result of a task that failed."""
    error = error_of(record) or ErrorOut(type="Exception", message="")
    detail = f"{error.type}: {error.message}" if error.message else error.type
    exc = errors.TaskFailed(
        detail, record.id, exc_type=error.type, exc_message=error.message, traceback=record.traceback
    )
    return _answer(exc, _KINDS[errors.TaskFailed], include_traceback=include_traceback)


def revoked(record: TaskRecord) -> Response:
    """The answer to a request for the result of a task that was revoked."""
    return _answer(errors.TaskRevoked(task_id=record.id), _KINDS[errors.TaskRevoked])


def describe(**details: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's ``responses`` for problems: ``describe(_404="There is no record of this task.")``."""
    content = {PROBLEM_JSON: {"schema": Problem.model_json_schema()}}
    return {
        int(status.lstrip("_")): {"description": text, "content": content} for status, text in details.items()
    }


def _readable(exc: RequestValidationError) -> RequestValidationError:
    """The error without what JSON cannot express: FastAPI shows what was sent, be it NaN or half of a character."""
    found = [each if _is_json(each) else _told(each) for each in exc.errors()]
    return RequestValidationError(found, body=exc.body)


def _told(error: Mapping[str, Any]) -> dict[str, Any]:
    def clean(part: Any) -> Any:
        return part.encode(errors="replace").decode() if isinstance(part, str) else part

    return {"type": error["type"], "loc": [clean(part) for part in error["loc"]], "msg": clean(error["msg"])}


def _is_json(value: Any) -> bool:
    try:
        json.dumps(jsonable_encoder(value), allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError):
        return False
    return True


class ProblemRoute(APIRoute):
    """A route that answers our errors as problems, in whatever app it is mounted, and that nobody caches."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                response = await handle(request)
            except RequestValidationError as exc:
                raise _readable(exc) from exc
            except errors.CeleriacError as exc:
                if (answered := problem_of(exc)) is None:
                    raise
                return answered
            response.headers.setdefault("Cache-Control", "no-store")
            return response

        return answer


def add_handlers(app: FastAPI) -> None:
    """Let a whole app answer our errors as problems, so that its own routes need no ``try`` around ``enqueue``.

    What ``.delay()`` raises when there is no broker is Celery's own error, and answers like ours. An exception handler
    that the app already has for one of them, or for a class of them, stays.
    """
    theirs = {kind for kind, handler in app.exception_handlers.items() if handler is not _handle}
    for kind, handler in {**dict.fromkeys(_KINDS, _handle), OperationalError: _handle_stock}.items():
        # Their handler of Exception or OSError is for what nobody expects.
        ours = (each for each in kind.__mro__ if each is kind or issubclass(each, errors.CeleriacError))
        if theirs.isdisjoint(ours):
            app.add_exception_handler(kind, handler)


async def _handle(_request: Request, exc: Exception) -> Response:
    answered = problem_of(exc)
    if answered is None:
        raise exc
    return answered


async def _handle_stock(request: Request, exc: Exception) -> Response:
    ours = exc.__cause__ if isinstance(exc.__cause__, errors.BrokerUnavailable) else None
    return await _handle(request, ours or errors.BrokerUnavailable(str(exc)))
