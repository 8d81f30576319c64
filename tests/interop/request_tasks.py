"""Tasks that return what ``task.request`` is to them. A stock worker imports this: it must not import celeriac."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any

import celery
from celery.app.task import Context

__all__ = ["KIND", "URL", "celery_app", "describe_request"]

#: The environment variables: the Redis server, and ``stock``, ``def`` or ``async def``.
URL, KIND = "REQUEST_URL", "REQUEST_KIND"

#: What a request has, as far as Celery documents it, and what the code of tasks and extensions reads.
NAMES = sorted(
    {name for name in vars(Context) if not name.startswith("_") and not callable(getattr(Context, name))}
    | {"task", "lang", "argsrepr", "kwargsrepr"}
)


def describe_request(request: Any) -> dict[str, Any]:
    """The attributes of a request as JSON values."""
    found = {name: getattr(request, name, "missing") for name in NAMES}
    found["children"] = [child.id for child in request.children]
    return found


def _define(app: Any, kind: str) -> None:
    def task(name: str, **options: Any) -> Any:
        def decorate(function: Callable[..., Any]) -> Any:
            @functools.wraps(function)
            async def coroutine(*args: Any, **kwargs: Any) -> Any:
                return function(*args, **kwargs)

            body = coroutine if kind == "async def" else function
            return app.task(name=name, bind=True, shared=False, **options)(body)

        return decorate

    @task("describe")
    def describe(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        return describe_request(self.request)

    @task("retried", max_retries=3)
    def retried(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        if self.request.retries < 2:
            raise self.retry(countdown=0, **kwargs)
        return describe_request(self.request)

    @task("replaced")
    def replaced(self):  # type: ignore[no-untyped-def]
        raise self.replace(app.signature("describe", ("replaced",)))

    @task("parent")
    def parent(self):  # type: ignore[no-untyped-def]
        child = app.signature("describe").apply_async()
        return {**describe_request(self.request), "child": child.id}

    @task("untrailed", trail=False)
    def untrailed(self):  # type: ignore[no-untyped-def]
        app.signature("describe").apply_async()
        return describe_request(self.request)

    @task("updated")
    def updated(self):  # type: ignore[no-untyped-def]
        self.request.update(shadow="another", timelimit=[9, 8])
        same = (
            celery.current_task.request is self.request or celery.current_task.request.id == self.request.id
        )
        return {**describe_request(self.request), "same": same, "name": celery.current_task.name}


def _make_app() -> Any:
    kind = os.environ[KIND]
    make = celery.Celery if kind == "stock" else importlib.import_module("celeriac").Celery
    app = make("request", set_as_current=True)
    app.conf.update(
        broker_url=os.environ[URL],
        result_backend=os.environ[URL],
        task_default_queue=kind.replace(" ", "-"),
        result_extended=True,
        broker_connection_retry_on_startup=True,
        worker_prefetch_multiplier=1,
    )
    _define(app, kind)
    return app


celery_app = _make_app() if URL in os.environ else None
