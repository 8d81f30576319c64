"""What ``task.request`` says, attribute by attribute, in our worker and in a stock one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from tests.acceptance.processes import Launcher
from tests.interop import request_tasks
from tests.services import RedisServer

pytestmark = pytest.mark.timeout(120)

_ROOT = Path(__file__).parents[2]

KINDS = ("stock", "def", "async def")

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "arguments": {"args": [1, None], "kwargs": {"two": {"three": [4]}}},
    "countdown": {"countdown": 0.2},
    "expires": {"expires": 60},
    "headers": {"headers": {"x-tenant": 1, "x-deep": {"a": [1]}}},
    "priority": {"priority": 3},
    "shadow": {"shadow": "another"},
    "reply_to": {"reply_to": "somebody", "correlation_id": "mine"},
    "time limits": {"time_limit": 30, "soft_time_limit": 20},
    "stamps": {"stamped_headers": ["visitor"], "visitor": "me"},
    "relations": {"root_id": "root", "parent_id": "parent", "group_id": "group", "group_index": 3},
    "kept result": {"ignore_result": False},
    "repr": {"argsrepr": "(secret)", "kwargsrepr": "{secret}"},
}

TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "retried": ("retried", {}),
    "retried with options": (
        "retried",
        {"headers": {"x-a": 1}, "priority": 4, "time_limit": 30, "shadow": "s"},
    ),
    "retried stamps": ("retried", {"stamped_headers": ["visitor"], "visitor": "me"}),
    "retried in other ways": (
        "retried",
        {"kwargs": {"headers": {"x-b": 2}, "priority": 5, "shadow": "later"}},
    ),
    "replaced": ("replaced", {}),
    "parent": ("parent", {}),
    "no trail": ("untrailed", {}),
    "updated by the task": ("updated", {}),
}

CANVAS = ("chain", "second of a chain", "last of a chain", "group", "chord", "body of a chord", "linked")

#: Differs from process to process, or by the time.
_OTHER = ("origin", "delivery_tag", "eta", "expires")


class Requests:
    """What tasks have been told, by kind and scenario."""

    def __init__(self, server: RedisServer, launcher: Launcher) -> None:
        processes = [self._start(launcher, server.url, kind) for kind in KINDS]
        for process in processes:
            process.wait_for_line(r" ready\.")
        with Celery(broker=server.url, backend=server.url, set_as_current=False) as app:
            pending = {kind: self._publish(app, kind.replace(" ", "-")) for kind in KINDS}
            self.told = {kind: self._collect(kind, pending[kind]) for kind in KINDS}

    @staticmethod
    def _start(launcher: Launcher, url: str, kind: str) -> Any:
        options = ("--loglevel=info", "-n", f"{kind.replace(' ', '-')}@here", "-c", "4")
        pool = ("-P", "threads") if kind == "stock" else ()
        return launcher.start(
            [sys.executable, "-m", "celery", "-A", "tests.interop.request_tasks", "worker", *options, *pool],
            cwd=_ROOT,
            env={request_tasks.URL: url, request_tasks.KIND: kind, "PYTHONPATH": str(_ROOT)},
        )

    @staticmethod
    def _publish(app: Any, queue: str) -> dict[str, Any]:
        def describe(*args: Any) -> Any:
            return app.signature("describe", args, immutable=True).set(queue=queue)

        results = {
            name: app.send_task("describe", queue=queue, **options) for name, options in OPTIONS.items()
        }
        results |= {
            name: app.send_task(task, queue=queue, **options) for name, (task, options) in TASKS.items()
        }
        end = chain(describe(1), describe(2), describe(3), app=app).apply_async()
        members = group([describe(1), describe(2)], app=app).apply_async()
        body = chord([describe(1), describe(2)], describe("body"), app=app).apply_async()
        linked = describe("linked")
        linked.freeze("linked-" + queue)
        results["linking"] = describe(1).apply_async(link=linked)
        found = (end.parent.parent, end.parent, end, members.children[1], body.parent.children[1], body)
        return results | dict(zip(CANVAS, (*found, app.AsyncResult("linked-" + queue)), strict=True))

    @staticmethod
    def _collect(kind: str, pending: dict[str, Any]) -> dict[str, dict[str, Any]]:
        told = {name: result.get(timeout=30) for name, result in pending.items()}
        named = {result.id: name for name, result in pending.items()}
        named[told["parent"]["child"]] = "child"
        named[told["group"]["group"]] = "of the group"
        named[told["chord"]["group"]] = "of the chord"
        text = json.dumps(told)
        for task_id, name in named.items():
            text = text.replace(task_id, f"<{name}>")
        queue = kind.replace(" ", "-")
        text = text.replace(f'"{queue}"', '"queue"').replace(f"{queue}@", "worker@")
        return {name: _comparable(request) for name, request in json.loads(text).items()}


def _comparable(request: dict[str, Any]) -> dict[str, Any]:
    # A retry's origin is a property, too, in Celery, which takes every option that it does not know for one.
    request["properties"] = {
        key: value for key, value in request["properties"].items() if key not in _OTHER and key != "origin"
    }
    for reprs in ("argsrepr", "kwargsrepr"):
        # Celery shows a list or a tuple, depending on where the call was made.
        request[reprs] = str(request[reprs]).strip("[](),")
    return {key: bool(value) if key in _OTHER else value for key, value in request.items()}


@pytest.fixture(scope="module")
def requests() -> Iterator[Requests]:
    launcher = Launcher()
    with RedisServer() as server:
        try:
            yield Requests(server, launcher)
        finally:
            launcher.clean_up()


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("scenario", [*OPTIONS, *TASKS, *CANVAS])
def test_a_request_says_what_it_says_in_a_stock_worker(requests: Requests, scenario: str, kind: str) -> None:
    ours, theirs = requests.told[kind][scenario], requests.told["stock"][scenario]
    if scenario == "replaced":  # published by the worker, whose own address it has
        ours["reply_to"] = theirs["reply_to"]
        ours["properties"]["reply_to"] = theirs["properties"]["reply_to"]
    if scenario == "body of a chord":  # the child of whichever part was last
        for name in ("root_id", "parent_id"):
            assert ours[name]
            ours[name] = theirs[name]
    assert ours == theirs
