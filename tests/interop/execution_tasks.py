"""Tasks that write down all that happens to them. Imported by a stock worker too, so it must not import celeriac.

``celery -A tests.interop.execution_tasks`` is a plain Celery app, unless the environment names a module with another.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import celery
import redis
from celery import signals
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded

__all__ = ["FOLDER", "KIND", "URL", "celery_app", "note"]

#: The environment variables: where notes are written, the Redis server, and ``stock``, ``def`` or ``async def``.
FOLDER, URL, KIND = "EXECUTION_FOLDER", "EXECUTION_URL", "EXECUTION_KIND"

_HANDLERS = {
    "before_start": ("task_id", "args", "kwargs"),
    "on_success": ("retval", "task_id", "args", "kwargs"),
    "on_failure": ("exc", "task_id", "args", "kwargs", "einfo"),
    "on_retry": ("exc", "task_id", "args", "kwargs", "einfo"),
    "after_return": ("status", "retval", "task_id", "args", "kwargs", "einfo"),
}

#: What the notes say the value of, and not only the type.
_TELLING = {
    "state",
    "status",
    "terminated",
    "signum",
    "expired",
    "how",
    "sig",
    "exitcode",
    "name",
    "id",
    "task_id",
}

_lock = threading.Lock()


@functools.cache
def _server() -> Any:
    return redis.Redis.from_url(os.environ[URL], decode_responses=True, socket_timeout=None)


def state_of(task_id: str | None) -> str:
    """What a client sees of the task right now."""
    stored = _server().get(f"celery-task-meta-{task_id}")
    state = json.loads(stored)["status"] if stored else "PENDING"
    return str(state)


def note(what: str, sender: Any, named: Mapping[str, Any], task_id: str | None = None) -> None:
    """Write down that something was called, with what, and what the backend says at that moment."""
    entry = {
        "what": what,
        "sender": sender if isinstance(sender, str) else _type(sender),
        "named": {key: value if key in _TELLING else _type(value) for key, value in sorted(named.items())},
        "task_id": task_id,
        "state": task_id and state_of(task_id),
        "thread": threading.get_ident(),
    }
    with _lock, (Path(os.environ[FOLDER]) / "notes").open("a") as file:
        file.write(json.dumps(entry, default=repr) + "\n")


def _type(value: Any) -> str:
    if isinstance(value, celery.Task):
        return "Task"
    return type(value).__name__


def _subject(named: Mapping[str, Any], sender: Any) -> str | None:
    if "task_id" in named:
        return str(named["task_id"])
    if "request" in named:
        return str(named["request"].id)
    if "headers" in named:
        return str(named["headers"]["id"])
    if isinstance(sender, celery.Task) and sender.request.id:
        return str(sender.request.id)
    return named.get("id") or None


def _listen() -> None:
    for name in (*signals.__all__, "import_modules"):
        if name in ("setup_logging", "heartbeat_sent"):  # to listen to the first is to take over the logging
            continue

        def receiver(signal: Any, sender: Any, _name: str = name, **named: Any) -> None:
            note(_name, sender, named, _subject(named, sender))

        getattr(signals, name).connect(receiver, weak=False)
    once = threading.Event()

    def heartbeat(signal: Any, sender: Any, **named: Any) -> None:
        if not once.is_set():
            once.set()
            note("heartbeat_sent", sender, named)

    signals.heartbeat_sent.connect(heartbeat, weak=False)


def _handler(name: str, parameters: tuple[str, ...], asynchronous: bool) -> Callable[..., Any]:
    def handler(self: Any, *values: Any) -> None:
        named = dict(zip(parameters, values, strict=True))
        note(name, self, named, named["task_id"])

    async def coroutine(self: Any, *values: Any) -> None:
        handler(self, *values)

    return coroutine if asynchronous else handler


def _wait(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.01)


def _define(app: Any, kind: str) -> None:
    handlers = {
        name: _handler(name, parameters, kind == "async def" and name in ("before_start", "on_failure"))
        for name, parameters in _HANDLERS.items()
    }
    base = type("Noting", (app.Task,), {**handlers, "abstract": True})

    def task(name: str, **options: Any) -> Any:
        def decorate(function: Callable[..., Any]) -> Any:
            @functools.wraps(function)
            def run(self: Any, *args: Any, **kwargs: Any) -> Any:
                note("function", self, {}, self.request.id)
                return function(self, *args, **kwargs)

            @functools.wraps(function)
            async def coroutine(self: Any, *args: Any, **kwargs: Any) -> Any:
                return run(self, *args, **kwargs)

            body = coroutine if kind == "async def" else run
            return app.task(name=name, bind=True, base=base, shared=False, **options)(body)

        return decorate

    @task("succeed")
    def succeed(self, value=1):  # type: ignore[no-untyped-def]
        return value

    @task("fail")
    def fail(self, text="too bad"):  # type: ignore[no-untyped-def]
        raise ValueError(text)

    @task("expected", throws=(KeyError,))
    def expected(self):  # type: ignore[no-untyped-def]
        raise KeyError("expected")

    @task("retry", max_retries=1, default_retry_delay=0)
    def retry(self):  # type: ignore[no-untyped-def]
        raise self.retry(exc=OSError("not yet"), countdown=0)

    @task("retry_bare", max_retries=1)
    def retry_bare(self):  # type: ignore[no-untyped-def]
        self.retry(countdown=0)

    @task("autoretry", autoretry_for=(OSError,), retry_kwargs={"max_retries": 1, "countdown": 0})
    def autoretry(self):  # type: ignore[no-untyped-def]
        raise OSError("not yet")

    @task("ignore")
    def ignore(self):  # type: ignore[no-untyped-def]
        raise Ignore

    @task("reject")
    def reject(self):  # type: ignore[no-untyped-def]
        raise Reject("unwanted", requeue=False)

    @task("requeue")
    def requeue(self):  # type: ignore[no-untyped-def]
        if not (self.request.delivery_info or {}).get("redelivered"):
            raise Reject("later", requeue=True)
        return "again"

    @task("forgetful", ignore_result=True)
    def forgetful(self, fails=False):  # type: ignore[no-untyped-def]
        if fails:
            raise ValueError("forgotten")

    @task("forgetful_but", ignore_result=True, store_errors_even_if_ignored=True)
    def forgetful_but(self):  # type: ignore[no-untyped-def]
        raise ValueError("kept")

    @task("unserializable")
    def unserializable(self):  # type: ignore[no-untyped-def]
        return object()

    @task("states")
    def states(self):  # type: ignore[no-untyped-def]
        self.update_state(state="HALFWAY", meta={"done": 1})

    @task("softly", soft_time_limit=1, time_limit=30)
    def softly(self):  # type: ignore[no-untyped-def]
        try:
            _wait(20)
        except SoftTimeLimitExceeded:
            return "softly"

    @task("calls")
    def calls(self):  # type: ignore[no-untyped-def]
        app.signature("succeed").apply_async()

    class Breaking(base):  # type: ignore[misc,valid-type]
        abstract = True

        def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
            note("before_start", self, {"task_id": task_id, "args": args, "kwargs": kwargs}, task_id)
            if args == ["before_start"]:
                raise ValueError("before")

        def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
            super().on_success(retval, task_id, args, kwargs)
            raise ValueError("on_success")

        def after_return(self, status: str, retval: Any, task_id: str, *rest: Any) -> None:
            super().after_return(status, retval, task_id, *rest)
            raise ValueError("after_return")

    def breaking(self, what):  # type: ignore[no-untyped-def]
        note("function", self, {}, self.request.id)

    async def breaking_coroutine(self, what):  # type: ignore[no-untyped-def]
        breaking(self, what)

    function = breaking_coroutine if kind == "async def" else breaking
    app.task(name="breaking", bind=True, base=Breaking, shared=False)(function)


def _make_app() -> Any:
    kind = os.environ[KIND]
    _listen()
    make = celery.Celery if kind == "stock" else importlib.import_module("celeriac").Celery
    app = make("execution", set_as_current=False)
    app.conf.update(
        broker_url=os.environ[URL],
        result_backend=os.environ[URL],
        task_default_queue=kind.replace(" ", "-"),
        task_track_started=True,
        task_acks_late=os.environ.get("EXECUTION_ACKS_LATE") == "1",
        result_extended=True,
        broker_connection_retry_on_startup=True,
        worker_prefetch_multiplier=1,
    )
    _define(app, kind)
    return app


celery_app = _make_app() if URL in os.environ else None
