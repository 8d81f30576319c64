"""The FastAPI app that goes with a Celery app: where a task's dependencies find overrides, ``app.state`` and more."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

from celeriac.errors import ConfigurationError

__all__ = ["WebApp", "WebApps", "in_worker", "load"]

logger = logging.getLogger("celeriac")

#: Whether an app's lifespan runs for the sake of a worker: nobody serves requests then.
in_worker: ContextVar[bool] = ContextVar("celeriac_in_worker", default=False)


class _Nothing(dict[str, Any]):
    """The state where there is no app. ``State.__getattr__`` looks into it, and passes this error on."""

    def __missing__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"There is no {name!r}: this process knows of no FastAPI app, so that request.app.state and request.state "
            'are empty. Name the app, by celeriac_fastapi_app = "main:app" or the variable CELERIAC_FASTAPI_APP.'
        )


@dataclass(frozen=True, slots=True)
class WebApp:
    """A FastAPI app, and what its lifespan has yielded: ``request.app`` and ``request.state``."""

    app: Any
    state: dict[str, Any] = field(default_factory=dict)

    def fresh_state(self) -> dict[str, Any]:
        """A copy of the state, for one attempt."""
        return type(self.state)(self.state)


class WebApps:
    """What one Celery app knows of its FastAPI app: by event loop where a lifespan runs."""

    def __init__(self, celery: Any) -> None:
        self._celery = celery
        self._running: WeakKeyDictionary[asyncio.AbstractEventLoop, WebApp] = WeakKeyDictionary()
        self._bare: Any = None
        self._looked_through = 0

    def current(self) -> WebApp:
        """The app whose lifespan runs on this loop; else the app without a state; else one that has nothing."""
        running = self._running.get(asyncio.get_running_loop())
        if running is not None:
            return running
        app = self.find()
        return WebApp(self._nothing(), _Nothing()) if app is None else WebApp(app)

    def prepare(self) -> None:
        """Find the app, or make one that has nothing, if a task needs one. It imports: not to be done on a loop."""
        tasks = self._celery.tasks.values()
        if any(getattr(getattr(task, "injected", None), "dependant", None) for task in tasks):
            _ = self.find() or self._nothing()

    @contextmanager
    def running(self, app: Any, state: Mapping[str, Any] | None) -> Iterator[None]:
        """Its lifespan runs on this loop while the context lasts."""
        loop = asyncio.get_running_loop()
        before = self._running.get(loop)
        self._running[loop] = WebApp(app, dict(state or {}))
        try:
            yield
        finally:
            if before is None:
                self._running.pop(loop, None)
            else:
                self._running[loop] = before

    def find(self) -> Any:
        """The FastAPI app: ``celery.fastapi_app``, else the setting ``celeriac_fastapi_app``, else the one in a module
        that has this Celery app as well; else ``None``.

        Raises ConfigurationError when the setting names what cannot be imported.
        """
        celery = self._celery
        if celery.fastapi_app is None and (path := celery.settings.fastapi_app):
            celery.fastapi_app = load(celery, path)
        # Only what has been imported since can have brought one.
        if celery.fastapi_app is None and len(sys.modules) != self._looked_through:
            self._looked_through = len(sys.modules)
            celery.fastapi_app = _discover(celery)
        return celery.fastapi_app

    def _nothing(self) -> Any:
        if self._bare is None:
            from fastapi import FastAPI
            from starlette.datastructures import State

            self._bare = FastAPI(openapi_url=None)
            self._bare.state = State(_Nothing())
        return self._bare


def load(celery: Any, path: str) -> Any:
    """The FastAPI app at ``MODULE:NAME``; one that is wrapped in ASGI middleware is found by its ``app``.

    ``None``, and a warning, if there is another kind of app. Raises ConfigurationError.
    """
    module, _, name = path.partition(":")
    try:
        found: Any = celery.loader.import_from_cwd(module)
        for part in (name or "app").split("."):
            found = getattr(found, part)
    except Exception as exc:
        raise ConfigurationError(
            f"celeriac_fastapi_app is {path!r}, which cannot be imported: {type(exc).__name__}: {exc}"
        ) from exc
    fastapi = _fastapi_in(found)
    if fastapi is None:
        logger.warning("celeriac_fastapi_app is %r, which is no FastAPI app: tasks do without.", path)
    return fastapi


def _fastapi_in(app: Any) -> Any:
    from fastapi import FastAPI

    for _ in range(20):
        if app is None or isinstance(app, FastAPI):
            return app
        app = getattr(app, "app", None)
    return None


def _discover(celery: Any) -> Any:
    """The FastAPI app in a module that has this Celery app as well; of several the one with a lifespan of Celery's."""
    fastapi = sys.modules.get("fastapi")
    if fastapi is None:
        return None
    found: dict[int, Any] = {}
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", None)
        values = list(names.values()) if type(names) is dict else ()
        if any(value is celery for value in values):
            found.update((id(value), value) for value in values if isinstance(value, fastapi.FastAPI))
    if len(found) > 1:
        found = {key: app for key, app in found.items() if _is_opened_by(app, celery)}
    if len(found) > 1:
        logger.warning(
            "There are several FastAPI apps beside the Celery app %s: say by celeriac_fastapi_app which is its own.",
            celery.main,
        )
        return None
    return next(iter(found.values()), None)


def _is_opened_by(app: Any, celery: Any) -> bool:
    """Whether the app's lifespan is this Celery app's, or has it inside: FastAPI merges those of routers into one."""
    ahead, seen = [app.router.lifespan_context], set[int]()
    while ahead:
        context = ahead.pop()
        if context is celery or getattr(context, "__self__", None) is celery:
            return True
        if id(context) in seen or not callable(context):
            continue
        seen.add(id(context))
        ahead.append(getattr(context, "__wrapped__", None))
        ahead.extend(_enclosed(context))
    return False


def _enclosed(function: Any) -> Iterator[Any]:
    for cell in getattr(function, "__closure__", None) or ():
        with suppress(ValueError):  # a name that has no value yet
            yield cell.cell_contents
