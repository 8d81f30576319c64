"""Tasks for canvas, in two forms: ``def.add`` and ``async.add``. A stock worker imports this, too, and has the first.

``celery -A tests.interop.canvas_tasks worker`` is an app of the kind that the environment names.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import celery
from celery import signature
from celery.canvas import StampingVisitor

__all__ = ["FOLDER", "FORMS", "KIND", "SETTINGS", "app", "define", "make_app"]

#: The environment variables: ``stock`` or ``ours``, the settings as JSON, and the folder that tasks write notes to.
KIND, SETTINGS, FOLDER = "CANVAS_KIND", "CANVAS_SETTINGS", "CANVAS_FOLDER"

#: The forms that an app of a kind has its tasks in.
FORMS = {"stock": ("def",), "ours": ("def", "async")}


def make_app(kind: str, settings: dict[str, Any]) -> celery.Celery:
    """An app of this kind, with all tasks in its forms."""
    if kind == "stock":
        if settings["broker_url"].startswith("sqlite:"):
            from celeriac.transports import register

            register()
        app = celery.Celery("canvas", set_as_current=False)
    else:
        from celeriac import Celery

        app = Celery("canvas", set_as_current=False)
    app.conf.update(settings)
    for form in FORMS[kind]:
        define(app, form)
    app.finalize(auto=True)
    return app


class _Stamp(StampingVisitor):  # type: ignore[misc]
    def on_signature(self, _sig: Any, **_headers: Any) -> dict[str, Any]:
        return {"replaced": "yes"}


class _Stamping(celery.Task):  # type: ignore[misc]
    """Stamps what it is replaced with."""

    def on_replace(self, sig: Any) -> Any:
        sig.stamp(_Stamp())
        return super().on_replace(sig)


def _note(name: str, line: Any) -> None:
    # One write to a file opened for appending: lines of several processes do not mix.
    with (Path(os.environ[FOLDER]) / name).open("a") as notes:
        notes.write(f"{line}\n")


def define(app: Any, form: str) -> None:
    """Add all tasks to an app in one form; with ``async``, each is a coroutine function that gives way once."""

    def task(function: Callable[..., Any] | None = None, **options: Any) -> Any:
        if function is None:
            return functools.partial(task, **options)
        name = f"{form}.{function.__name__}"
        if form == "def":
            return app.task(name=name, shared=False, **options)(function)

        @functools.wraps(function)
        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0)
            return function(*args, **kwargs)

        # Celery tells the styles of errbacks apart by their parameters, and does not look behind wrappers.
        vars(coroutine)["__signature__"] = inspect.signature(function)
        return app.task(name=name, shared=False, **options)(coroutine)

    _define_plain(task)
    _define_callers(task)
    _define_errbacks(task)


def _define_plain(task: Any) -> None:
    @task
    def add(x, y, z=0):  # type: ignore[no-untyped-def]
        return x + y + z

    @task
    def total(numbers):  # type: ignore[no-untyped-def]
        return sum(numbers)

    @task
    def echo(value):  # type: ignore[no-untyped-def]
        return value

    @task
    def fail(*args):  # type: ignore[no-untyped-def]
        raise ValueError("no")

    @task
    def note(*args):  # type: ignore[no-untyped-def]
        """The last two: where to write, and what. Gives what the task before it gave."""
        _note(args[-2], args[-1])
        return args[0] if len(args) > 2 else None

    @task(bind=True)
    def tell(self, *args, keep=None):  # type: ignore[no-untyped-def]
        """What the task knows of its place; with what ``keep`` says, in a note."""
        request = self.request
        found = {
            "id": request.id,
            "root": request.root_id,
            "parent": request.parent_id,
            "group": request.group,
            "index": request.group_index,
            "priority": (request.delivery_info or {}).get("priority"),
            "nesting": request.replaced_task_nesting,
            "stamps": request.stamps,
            "stamped": sorted(request.stamped_headers or ()),
            "args": args,
        }
        if keep:
            _note(keep, json.dumps(found))
        return found

    @task(bind=True, max_retries=3)
    def retry(self, value):  # type: ignore[no-untyped-def]
        if self.request.retries < 1:
            raise self.retry(countdown=0.05)
        return value

    @task(ignore_result=True)
    def forgotten(value):  # type: ignore[no-untyped-def]
        return value


def _define_callers(task: Any) -> None:
    def within(to, args, app):  # type: ignore[no-untyped-def]
        called = signature(to, app=app)
        return called.clone(args) if args else called

    @task(bind=True)
    def swap(self, *args, to):  # type: ignore[no-untyped-def]
        """Is replaced with a signature, which gets the arguments."""
        raise self.replace(within(to, args, self.app))

    @task(bind=True, base=_Stamping)
    def stamping_swap(self, *args, to):  # type: ignore[no-untyped-def]
        raise self.replace(within(to, args, self.app))

    @task(bind=True)
    def call(self, *args, to):  # type: ignore[no-untyped-def]
        """Calls a signature, and gives its id."""
        return within(to, args, self.app).apply_async().id

    @task(bind=True)
    def call_for_result(self, *args, to):  # type: ignore[no-untyped-def]
        return within(to, args, self.app).apply_async()

    @task(bind=True, trail=False)
    def call_untrailed(self, *args, to):  # type: ignore[no-untyped-def]
        return within(to, args, self.app).apply_async().id

    @task(bind=True)
    def spread(self, numbers, to):  # type: ignore[no-untyped-def]
        """Adds a part to its chord for each number, which it gets unless that is ``None``."""
        for number in numbers:
            self.add_to_chord(within(to, () if number is None else (number,), self.app))
        return 0


def _define_errbacks(task: Any) -> None:
    @task
    def old_errback(task_id, name):  # type: ignore[no-untyped-def]
        _note(name, f"old {task_id}")

    @task
    def new_errback(request, error, traceback, name):  # type: ignore[no-untyped-def]
        _note(name, f"new {request.id} {type(error).__name__} {bool(traceback)}")


if KIND in os.environ:
    app = make_app(os.environ[KIND], json.loads(os.environ[SETTINGS]))
