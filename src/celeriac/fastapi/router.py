"""``celery.router()``: the routes of tasks, for an app to mount."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, params

from celeriac.fastapi.access import Access
from celeriac.fastapi.commands import add_closed_commands, add_commands
from celeriac.fastapi.endpoints import add_events, add_list, add_record
from celeriac.fastapi.errors import ProblemRoute
from celeriac.fastapi.results import LONGEST_WAIT, add_result

if TYPE_CHECKING:
    from celeriac.app import Celery

__all__ = ["build_router"]


def build_router(
    celery: Celery,
    *,
    dependencies: Sequence[params.Depends] | None = None,
    owner: params.Depends | Callable[..., Any] | None = None,
    insecure: bool = False,
    tags: Sequence[str | Enum] = ("tasks",),
    include_traceback: bool = False,
    heartbeat: float = 15.0,
    longest_wait: float = LONGEST_WAIT,
) -> APIRouter:
    """The routes of tasks: list, record, result, events, cancel and retry. Mount it under a prefix.

    Cancel and retry are closed, and answer 403, unless one of ``dependencies``, ``owner`` and ``insecure`` is given.

    Args:
        dependencies: FastAPI dependencies of every route; they raise to turn a caller away.
        owner: a dependency that gives the caller's name (a non-empty str, an int or a UUID, as in
            ``task.using(owner=…)``). Each caller sees their own tasks alone; others' are unknown to them.
        insecure: open cancel and retry to everybody who can reach the app.
        tags: OpenAPI tags.
        include_traceback: show the traceback of a failed task in its record and result.
        heartbeat: seconds of silence after which a stream of events gets a comment. FastAPI adds one every 15 s.
        longest_wait: seconds at most that ``?wait=`` holds a request, up to 60.
    """
    router = APIRouter(tags=list(tags), dependencies=list(dependencies or ()), route_class=ProblemRoute)
    access = Access.to(celery, owner)
    add_list(router, celery, access)
    add_record(router, access, include_traceback=include_traceback)
    add_result(router, celery, access, longest_wait=longest_wait, include_traceback=include_traceback)
    add_events(router, celery, access, heartbeat=heartbeat)
    if dependencies or owner is not None or insecure:
        add_commands(router, celery, access)
    else:
        add_closed_commands(router)
    return router
