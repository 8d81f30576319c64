"""Stubs: typed stand-ins of tasks whose functions this program does not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from celeriac.errors import ConfigurationError
from celeriac.task import Task

__all__ = ["Stub", "make_stub"]


class Stub(Task[..., Any]):
    """A task by name and signature. It is published like any other, and nobody can run it here."""

    abstract = True

    def apply(self, *args: Any, **options: Any) -> Any:
        """Celery's, of the task itself, if this program happens to have it, too. Raises ConfigurationError."""
        task = self.app.tasks.get(self.name)
        if task is None:
            self._refuse()
        return task.apply(*args, **options)

    def __call__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Raise ConfigurationError: there is nothing to call."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ConfigurationError(f"{self.name} is a stub: it can be enqueued, and its function is elsewhere.")


def make_stub(app: Any, function: Callable[..., Any], name: str, options: dict[str, Any]) -> Stub:
    """A stub that belongs to the app, and is not among its tasks."""
    attributes = {
        # As celery.app.base.Celery._task_from_fun names them.
        "app": app,
        "name": name,
        "run": staticmethod(function),
        "_decorated": True,
        "_decorated_fun": staticmethod(function),
        "__doc__": function.__doc__,
        "__module__": function.__module__,
        "__header__": app.type_checker(function),
        "__wrapped__": staticmethod(function),
    }
    # Inherited: Celery calls a queue and a priority in the class itself deprecated.
    stub: Stub = type(function.__name__, (type("Stub", (Stub,), options),), attributes)()
    stub.bind(app)
    return stub
