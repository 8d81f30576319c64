"""``TaskRouter``: tasks that are declared without an app, and join the apps that include them.

As with FastAPI's ``APIRouter``, the modules of the tasks do not import the app, and the app imports them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from celery import current_task

from celeriac.compat import TaskProxy
from celeriac.declaring import DeclaresTasks, TaskDecorator
from celeriac.errors import ConfigurationError

__all__ = ["Declaration", "Placement", "TaskRouter", "checked", "expect_router"]


class _NotIncluded(ConfigurationError, RuntimeError):
    """The task belongs to no app yet."""  # RuntimeError: celery.local.Proxy shows itself as unbound


class Declaration:
    """A function that was declared on a router, and the apps that have made a task of it.

    ``is_stub``: only a stand-in, see ``TaskRouter.stub``.
    """

    __slots__ = ("_apps", "function", "is_stub")

    def __init__(self, function: Callable[..., Any], *, is_stub: bool) -> None:
        self.function = function
        self.is_stub = is_stub
        # Not for them to live as long as the router, which is a module's: tests make one app after the other.
        self._apps: list[weakref.ref[Any]] = []

    def adopted_by(self, app: Any) -> None:
        """From here on this app has the task."""
        self._apps = [known for known in self._apps if known() not in (None, app)]
        self._apps.append(weakref.ref(app))

    def resolve(self) -> Any:
        """The task of the app that is meant here: that of the running task, the one that is open on this event loop,
        else the one that has included the router last. Raises ConfigurationError."""
        apps = self._apps
        app = apps[0]() if len(apps) == 1 else self._choose()
        if app is None:
            function = self.function
            raise _NotIncluded(
                f"{function.__module__}.{function.__qualname__} is a task of a TaskRouter that no app has included: "
                "call celery.include_router(…) with the router, before the task is used."
            )
        return app.task_of(self)

    def _choose(self) -> Any:
        apps = [app for app in (known() for known in reversed(self._apps)) if app is not None]
        running = current_task.app if current_task else None
        if running in apps:
            return running
        for app in apps:
            if app.is_open_here:
                return app
        return apps[0] if apps else None


@dataclass(frozen=True, slots=True)
class Placement:
    """A declaration where it was included: what comes before its name, and its options there."""

    declaration: Declaration
    prefix: str
    options: Mapping[str, Any]

    def within(self, prefix: str, options: Mapping[str, Any]) -> Placement:
        """The same, seen from outside: what is said nearer to the function wins."""
        return Placement(self.declaration, prefix + self.prefix, {**options, **self.options})


class TaskRouter(DeclaresTasks):
    """Tasks for an app to include: ``celery.include_router(router)``.

    With a prefix, here or where the router is included, a task's name is the prefix and the function's name, or the
    prefix and the name that the task was given. Without any it is Celery's, ``module.function``.

    Args:
        prefix: What the tasks' names begin with, such as ``"reports."``.
        options: What ``@celery.task`` takes, for each task that does not say otherwise.
    """

    def __init__(self, prefix: str = "", **options: Any) -> None:
        self._prefix = prefix
        self._options = checked(options)
        self._placements: list[Placement] = []
        self._parents: list[TaskRouter] = []
        # Kept by those who asked: a router is a module's, and apps come and go.
        self._receivers: weakref.WeakSet[Callable[[Placement], None]] = weakref.WeakSet()
        self._feeds: list[Callable[[Placement], None]] = []

    def include_router(self, router: TaskRouter, *, prefix: str = "", **options: Any) -> None:
        """Take in the tasks of another router, those too that it gets later. Raises ConfigurationError for a circle."""
        expect_router(router)
        if router is self or router in self._ancestors():
            raise ConfigurationError("A TaskRouter cannot include itself, nor one that includes it.")
        options = checked(options)
        router._parents.append(self)

        def receive(placement: Placement) -> None:
            self._add(placement.within(prefix, options))

        self._feeds.append(receive)
        router.feed(receive)

    def feed(self, receive: Callable[[Placement], None]) -> None:
        """Call this with each declaration that is here, and with each that is to come while somebody else keeps it."""
        self._receivers.add(receive)
        for placement in list(self._placements):
            receive(placement)

    def _ancestors(self) -> list[TaskRouter]:
        found = list(self._parents)
        for parent in self._parents:
            found += parent._ancestors()
        return found

    def _add(self, placement: Placement) -> None:
        placement = placement.within(self._prefix, self._options)
        self._placements.append(placement)
        for receive in list(self._receivers):
            receive(placement)

    def _declare_task(self, args: Sequence[Any], options: dict[str, Any]) -> Any:
        if not args:
            return lambda function: self._declare(function, options, is_stub=False)
        (function,) = args
        return self._declare(function, options, is_stub=False)

    def _declare_stub(self, name: str | None, options: dict[str, Any]) -> TaskDecorator:
        options = {**options, "name": name} if name else options
        return cast("TaskDecorator", lambda function: self._declare(function, options, is_stub=True))

    def _declare(self, function: Callable[..., Any], options: dict[str, Any], *, is_stub: bool) -> Any:
        declaration = Declaration(function, is_stub=is_stub)
        self._add(Placement(declaration, "", options))
        return TaskProxy(declaration.resolve, function)


def checked(options: dict[str, Any]) -> dict[str, Any]:
    """The options, if they may be those of many tasks. Raises ConfigurationError."""
    if "name" in options:
        raise ConfigurationError("A name is one task's own; a router has a prefix.")
    return options


def expect_router(router: object) -> None:
    """Refuse what is included and is no TaskRouter: FastAPI's method has the same name."""
    if not isinstance(router, TaskRouter):
        raise ConfigurationError(
            f"include_router takes a TaskRouter here, and {type(router).__name__} is none. "
            "Routers of endpoints are for the FastAPI app: app.include_router(…)."
        )
