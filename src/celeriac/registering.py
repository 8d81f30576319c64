"""The part of the app that has tasks: its own, those of routers, and stubs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from kombu.utils.objects import cached_property

from celeriac.compat import deferred, evaluated
from celeriac.declaring import DeclaresTasks, TaskDecorator
from celeriac.dependencies import has_open_references, injected_parameters
from celeriac.enqueuing import Enqueues
from celeriac.errors import ConfigurationError
from celeriac.stubs import make_stub
from celeriac.task_router import Declaration, Placement, TaskRouter, checked, expect_router

__all__ = ["HasTasks"]


#: Celery calls these deprecated when it finds them in a task's own class, not when the class inherits them. They stay.
_ROUTE = frozenset({"queue", "exchange", "routing_key", "priority"})


def _accept_anything(*_args: Any, **_kwargs: Any) -> None:
    """Instead of a function's own head, where calls leave out some of its parameters."""


class HasTasks(DeclaresTasks, Enqueues):
    """The app's tasks."""

    def __init__(self, main: str | None = None, **options: Any) -> None:
        self._stubs: dict[str, Any] = {}
        self._adopted: dict[str, Declaration] = {}
        self._tasks_of: dict[Declaration, Any] = {}
        self._included: set[str] = set()
        self._feeds: list[tuple[TaskRouter, Callable[[Placement], None]]] = []
        super().__init__(main, **options)

    def include_router(self, router: TaskRouter, *, prefix: str = "", **options: Any) -> None:
        """Make tasks of what is declared on a router, now and later.

        ``prefix`` comes before the router's own; the options are those of ``@celery.task``, for each task that neither
        says otherwise itself nor by its router. Raises ConfigurationError for a name that is taken.
        """
        expect_router(router)
        options = checked(options)
        this = weakref.ref(self)

        def receive(placement: Placement) -> None:
            if (app := this()) is not None:
                app._adopt(placement.within(prefix, options))

        self._feeds.append((router, receive))
        router.feed(receive)

    @cached_property
    def loader(self) -> Any:
        """Celery's loader; among the modules of ``include`` and ``imports`` may be routers, as ``"module:router"``."""
        loader = super().loader
        loader.import_task_module = partial(self._import_tasks, loader.import_task_module)
        return loader

    def _import_tasks(self, import_module: Callable[[str], Any], path: str) -> Any:
        module_name, _, name = path.partition(":")
        module = import_module(module_name)
        if name and path not in self._included:
            router = getattr(module, name, None)
            if not isinstance(router, TaskRouter):
                raise ConfigurationError(
                    f"include names {path}, but {name} is no TaskRouter of {module_name}."
                )
            self.include_router(router)
            self._included.add(path)
        return module

    def task_of(self, declaration: Declaration) -> Any:
        """What this app has made of a router's declaration."""
        return evaluated(self._tasks_of[declaration])

    @property
    def is_open_here(self) -> bool:
        """Whether broker and store are open on the running event loop."""
        return self._connections.current() is not None

    def type_checker(self, fun: Callable[..., Any], bound: bool = False) -> Any:
        """What Celery checks the arguments of a call with; parameters that the worker fills in are no part of it."""
        if has_open_references(fun) or injected_parameters(fun):
            return staticmethod(_accept_anything)  # the task's schema has checked them
        return super().type_checker(fun, bound=bound)

    def _declare_task(self, args: Sequence[Any], options: dict[str, Any]) -> Any:
        options.setdefault("shared", False)
        if route := {name: options.pop(name) for name in _ROUTE & options.keys()}:
            options["base"] = type("Task", (options.get("base") or self.Task,), route)
        return super(DeclaresTasks, self).task(*args, **options)

    def _declare_stub(self, name: str | None, options: dict[str, Any]) -> TaskDecorator:
        if not name:
            raise ConfigurationError("A stub needs the name of its task: celery.stub(name=…).")

        def declare(function: Callable[..., Any]) -> Any:
            # Later, as Celery's own tasks: making one reads the configuration.
            stub = self._stubs[name] = deferred(lambda: make_stub(self, function, name, options))
            return stub

        return cast("TaskDecorator", declare)

    def _adopt(self, placement: Placement) -> None:
        declaration, options = placement.declaration, dict(placement.options)
        name = self._name_of(placement.prefix, declaration.function, options.pop("name", None))
        if self._adopted.get(name) is not declaration:
            if name in self._adopted or (name in self._tasks and not declaration.is_stub):
                raise ConfigurationError(
                    f"There are two tasks named {name}: give one of them another name or prefix."
                )
            self._adopted[name] = declaration
            declare: Any = self.stub if declaration.is_stub else self.task
            task = declare(name=name, **options)(declaration.function)
            self._tasks_of.setdefault(declaration, task)
        declaration.adopted_by(self)

    def _name_of(self, prefix: str, function: Callable[..., Any], given: str | None) -> str:
        if prefix or given:
            return prefix + (given or function.__name__)
        name: str = self.gen_task_name(function.__name__, function.__module__)
        return name
