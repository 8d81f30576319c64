"""``celery.router()``: the routes of tasks, for an app to mount."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from fastapi.params import Depends

from celeriac.errors import ConfigurationError
from celeriac.fastapi.access import Access
from celeriac.fastapi.commands import add_closed_commands, add_commands
from celeriac.fastapi.dead_letters import add_dead_letters, add_replay
from celeriac.fastapi.endpoints import add_events, add_list, add_record
from celeriac.fastapi.errors import ProblemRoute
from celeriac.fastapi.exposed import Exposed
from celeriac.fastapi.idempotency import Idempotency
from celeriac.fastapi.limits import TOO_LARGE, limited_route
from celeriac.fastapi.models import TaskAccepted
from celeriac.fastapi.results import LONGEST_WAIT, add_result, responses
from celeriac.fastapi.sockets import add_socket
from celeriac.task import EnqueueOptions, Task

if TYPE_CHECKING:
    from celeriac.app import Celery

__all__ = ["TasksRouter"]

Dependencies = Sequence[Depends]
Owner = Depends | Callable[..., Any]


class TasksRouter(APIRouter):
    """The routes of tasks: list, record, result, events, cancel, retry, delete, dead letters, and exposed tasks.

    Cancel, retry, delete and replay are closed, and answer 403, unless one of ``dependencies``, ``owner`` and
    ``insecure`` is given.

    Args:
        dependencies: FastAPI dependencies of every route; they raise to turn a caller away.
        owner: a dependency that gives the caller's name (a non-empty str, an int or a UUID, as in
            ``task.using(owner=…)``). Each caller sees their own tasks alone; others' are unknown to them.
        insecure: open what changes something to everybody who can reach the app.
        records: whether the routes of records are there; without them, there is what is exposed and nothing else.
        tags: OpenAPI tags.
        include_traceback: show the traceback of a failed task in its record and result.
        heartbeat: seconds of silence after which a stream of events gets a sign of life.
        slow_client: seconds after which a client that takes nothing of its stream of events is dropped. It may come
            back, and go on where it was.
        websocket_origins: whose pages may open the WebSocket, besides those of the app's own host: origins such as
            ``https://shop.example``, or ``*`` for all.
        longest_wait: seconds at most that ``?wait=`` holds a request, up to 60.
    """

    def __init__(
        self,
        celery: Celery,
        *,
        dependencies: Dependencies | None = None,
        owner: Owner | None = None,
        insecure: bool = False,
        records: bool = True,
        tags: Sequence[str | Enum] = ("tasks",),
        include_traceback: bool = False,
        heartbeat: float = 15.0,
        slow_client: float = 30.0,
        websocket_origins: Sequence[str] = (),
        longest_wait: float = LONGEST_WAIT,
    ) -> None:
        super().__init__(tags=list(tags), dependencies=list(dependencies or ()), route_class=ProblemRoute)
        self._celery = celery
        self._records = records
        self._include_traceback = include_traceback
        self._longest_wait = longest_wait
        self._open = bool(dependencies) or owner is not None or insecure
        self._access = Access.to(celery, owner)
        self._exposed: dict[str, str] = {}
        if records:
            self._add_records()
            self._add_events(heartbeat, slow_client, websocket_origins)

    def _add_records(self) -> None:
        celery, access = self._celery, self._access
        traceback = self._include_traceback
        add_list(self, celery, access)
        add_dead_letters(self, celery, access)
        add_record(self, access, include_traceback=traceback)
        add_result(self, celery, access, longest_wait=self._longest_wait, include_traceback=traceback)
        if self._open:
            add_commands(self, celery, access)
            add_replay(self, celery, access)
        else:
            add_closed_commands(self)

    def _add_events(self, heartbeat: float, slow_client: float, origins: Sequence[str]) -> None:
        celery, access = self._celery, self._access
        add_events(self, celery, access, heartbeat=heartbeat, slow_client=slow_client)
        add_socket(self, celery, access, heartbeat=heartbeat, slow_client=slow_client, origins=origins)

    def expose(
        self,
        task: Task[..., Any],
        path: str,
        *,
        name: str | None = None,
        tags: Sequence[str | Enum] | None = None,
        summary: str | None = None,
        description: str | None = None,
        responses: Mapping[int | str, dict[str, Any]] | None = None,
        deprecated: bool | None = None,
        include_in_schema: bool = True,
        dependencies: Dependencies | None = None,
        owner: Owner | None = None,
        insecure: bool = False,
        options: EnqueueOptions | None = None,
        deadline: float | None = None,
        idempotency: Idempotency = "optional",
        idempotency_expires: float = 86_400.0,
    ) -> None:
        """Make two routes of a task: ``POST path`` enqueues it, and ``GET path/{task_id}`` tells how it stands.

        Args:
            task: a task of this app. What it takes becomes the body; what it returns is in the OpenAPI document.
            path: where; begins with a slash, and comes behind the router's prefix.
            name: the first route's name, which is in its operation id and that of the body's model; the second's is
                ``get_`` and this. The task's own by default.
            tags, summary, description, responses, deprecated, include_in_schema: as in FastAPI; ``summary``,
                ``description`` (the function's docstring by default) and ``responses`` are the first route's.
            dependencies: dependencies of both routes, beside the router's; they raise to turn a caller away.
            owner: a dependency that names the caller, to whom the task then belongs; the router's by default.
            insecure: let everybody who can reach the app enqueue the task.
            options: those of ``task.using`` that every call has: ``queue``, ``priority``, ``countdown``, …
            deadline: seconds that publishing may take; ``celeriac_publish_deadline`` by default.
            idempotency: whether requests may, must or cannot say by an ``Idempotency-Key`` that they are the same:
                ``"optional"``, ``"required"`` or ``"off"``.
            idempotency_expires: seconds that a key is remembered, but no longer than the record of its task is kept.

        Raises:
            ConfigurationError: nobody has said who may enqueue the task, or no JSON body can call it.
        """
        task = self._own(task)
        if not path.startswith("/") or not path.strip("/"):
            raise ConfigurationError(
                f"{task.name} cannot be exposed under {path!r}: give it a path like '/reports'."
            )
        if not (self._open or dependencies or owner is not None or insecure):
            raise ConfigurationError(
                f"{task.name} is not exposed, because nobody has said who may enqueue it: give expose() or"
                " celery.router() dependencies=[…] that check the caller, owner=Depends(…) that names them, or"
                " insecure=True."
            )
        exposed = Exposed(
            celery=self._celery,
            task=task,
            name=name or task.name.rpartition(".")[2],
            path=path,
            access=self._access if owner is None else Access.to(self._celery, owner),
            options=_options(task, options, deadline),
            idempotency=idempotency,
            idempotency_expires=idempotency_expires,
            longest_wait=self._longest_wait,
            include_traceback=self._include_traceback,
            records=self._records,
            commands=self._open,
        )
        shared: dict[str, Any] = {
            "tags": list(tags or ()),
            "dependencies": list(dependencies or ()),
            "deprecated": deprecated,
            "include_in_schema": include_in_schema,
        }
        self._add(exposed, summary, description, responses or {}, shared)

    def _own(self, task: Any) -> Task[..., Any]:
        """The task as this app has it: several may include the router that declares it."""
        own = task
        if isinstance(task, Task) and task.app is not self._celery:
            own = self._celery.tasks.get(task.name)
        if isinstance(own, Task):
            return own
        raise ConfigurationError(f"expose takes a task of this app, and {task!r} is none.")

    def _add(
        self,
        exposed: Exposed,
        summary: str | None,
        description: str | None,
        more: Mapping[int | str, dict[str, Any]],
        shared: dict[str, Any],
    ) -> None:
        mine, path = exposed.task.name, exposed.path.rstrip("/")
        if (other := self._exposed.setdefault(path, mine)) != mine:
            raise ConfigurationError(f"{mine} cannot be exposed under {path!r}: that is the path of {other}.")
        status, takes_files = exposed.telling(), exposed.task.schema.takes_files
        self.add_api_route(
            f"{path}/{{task_id}}",
            status,
            methods=["GET"],
            name=f"get_{exposed.name}",
            description="How the task stands. With `wait`, the answer comes as soon as it has finished.",
            response_model=exposed.status_model,
            responses=responses(exposed.status_model),
            **shared,
        )
        self.add_api_route(
            exposed.path,
            exposed.accepting(),
            methods=["POST"],
            status_code=202,
            name=exposed.name,
            summary=summary,
            description=description or exposed.task.function.__doc__ or "",
            response_model=TaskAccepted,
            responses={**exposed.accepted, **(TOO_LARGE if takes_files else {}), **more},
            route_class_override=limited_route(self._celery) if takes_files else None,
            **shared,
        )
        # Before the router's own, whose parameters would swallow a path like /orders/cancel.
        self.routes[:0] = [self.routes.pop(), self.routes.pop()]


def _options(task: Task[..., Any], options: EnqueueOptions | None, deadline: float | None) -> dict[str, Any]:
    given: dict[str, Any] = {**(options or {})}
    if mine := {"task_id", "owner"} & given.keys():
        raise ConfigurationError(
            f"{task.name} cannot be exposed with the option {mine.pop()!r}: each call has its own."
        )
    return given if deadline is None else {**given, "deadline": deadline}
