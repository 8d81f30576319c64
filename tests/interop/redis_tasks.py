"""Tasks that every app of the Redis tests has. Must not import celeriac: stock processes import this."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection
from typing import Any

import redis
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from kombu import Exchange, Queue

__all__ = ["SETTINGS", "SIDE_URL", "define", "settings"]

#: The environment variable with an app's settings, as JSON.
SETTINGS = "REDIS_TEST_SETTINGS"

#: The environment variable with the URL of the database that tasks and tests talk through.
SIDE_URL = "REDIS_TEST_SIDE_URL"

_REQUEST = (
    "id",
    "args",
    "kwargs",
    "retries",
    "eta",
    "expires",
    "timelimit",
    "shadow",
    "ignore_result",
    "reply_to",
    "correlation_id",
    "root_id",
    "parent_id",
    "group",
    "headers",
    "stamps",
    "stamped_headers",
    "delivery_info",
    "hostname",
)


def settings() -> dict[str, Any]:
    """The settings in the environment; queues are lists of name, exchange, type and routing key."""
    values: dict[str, Any] = json.loads(os.environ[SETTINGS])
    if "task_queues" in values:
        values["task_queues"] = [
            Queue(name, Exchange(exchange, type=kind), routing_key=key)
            for name, exchange, kind, key in values["task_queues"]
        ]
    return values


def define(app: Any, without: Collection[str] = ()) -> None:
    """Add the tasks to an app, but for those that it has in a form of its own."""
    side = redis.Redis.from_url(os.environ[SIDE_URL], decode_responses=True, socket_timeout=None)

    def write(name: str, line: str) -> None:
        side.rpush(f"notes:{name}", line)

    def pause(seconds: float) -> None:
        # A thread can be stopped between two steps only.
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(0.01)

    def task(name: str, **options: Any) -> Any:
        if name in without:
            return lambda function: None
        return app.task(name=name, shared=False, **options)

    @task("add")
    def add(x, y):  # type: ignore[no-untyped-def]
        return x + y

    @task("total")
    def total(numbers):  # type: ignore[no-untyped-def]
        return sum(numbers)

    @task("echo")
    def echo(value):  # type: ignore[no-untyped-def]
        return value

    @task("fail")
    def fail(*args):  # type: ignore[no-untyped-def]
        raise ValueError(args[-1])

    @task("describe", bind=True)
    def describe(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        """What the task is told of its call, as JSON values."""
        values = {name: getattr(self.request, name, None) for name in _REQUEST}
        # Not JSON: a worker of any kind adds what it likes to the custom headers.
        values["headers"] = {
            name: value for name, value in (values["headers"] or {}).items() if name.startswith("x-")
        }
        return values

    @task("note")
    def note(*args):  # type: ignore[no-untyped-def]
        """The last two: where to write, and what."""
        write(args[-2], str(args[-1]))

    @task("note_error")
    def note_error(request, error, traceback, name):  # type: ignore[no-untyped-def]
        write(name, f"{request.id} {error!r}")

    @task("retry", bind=True, max_retries=3)
    def retry(self, times):  # type: ignore[no-untyped-def]
        if self.request.retries < times:
            raise self.retry(countdown=0.1)
        return self.request.retries

    @task(
        "autoretry",
        bind=True,
        autoretry_for=(KeyError,),
        retry_kwargs={"max_retries": 2, "countdown": 0.1},
    )
    def autoretry(self, times):  # type: ignore[no-untyped-def]
        if self.request.retries < times:
            raise KeyError("not yet")
        return self.request.retries

    @task("wait", bind=True, acks_late=True)
    def wait(self, name):  # type: ignore[no-untyped-def]
        """Run until the gate of this name is opened."""
        again = "again" if (self.request.delivery_info or {}).get("redelivered") else "first"
        write(name, f"start {self.request.hostname.partition('@')[0]} {again}")
        side.blpop([f"gate:{name}"], timeout=60)
        write(name, "end")
        return name

    @task("halfway", bind=True)
    def halfway(self, name):  # type: ignore[no-untyped-def]
        self.update_state(state="HALFWAY", meta={"done": 1})
        side.blpop([f"gate:{name}"], timeout=30)
        return name

    @task("soften")
    def soften(seconds):  # type: ignore[no-untyped-def]
        try:
            pause(seconds)
        except SoftTimeLimitExceeded:
            return "softly"
        return "done"

    @task("sleep")
    def sleep(seconds):  # type: ignore[no-untyped-def]
        pause(seconds)

    @task("nested")
    def nested(number, queue):  # type: ignore[no-untyped-def]
        """Calls another task, and gives its id."""
        return app.signature("add", (number, 1)).apply_async(queue=queue).id

    @task("replaced", bind=True)
    def replaced(self, number, queue):  # type: ignore[no-untyped-def]
        raise self.replace(app.signature("add", (number, 1), queue=queue))

    @task("ignoring")
    def ignoring():  # type: ignore[no-untyped-def]
        raise Ignore

    @task("rejecting", acks_late=True)
    def rejecting():  # type: ignore[no-untyped-def]
        raise Reject("unwanted", requeue=False)
