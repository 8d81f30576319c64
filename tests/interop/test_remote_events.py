"""What ``celery events`` and Flower hear: of our worker, and of a stock one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from celery.events.state import State
from tests.interop import remote_app
from tests.interop.remote_site import Events, RemoteSite, wait_for

pytestmark = pytest.mark.timeout(90)

KINDS = {"ours": ("ours", "-c", "4", "-E"), "stock": ("stock", "-c", "2", "-P", "prefork", "-E")}

#: Times and such, which no two events share.
_OWN = {
    "uuid",
    "args",
    "traceback",
    "queue",
    "routing_key",
    "expires",
    "eta",
    "hostname",
    "pid",
    "clock",
    "timestamp",
    "local_received",
    "utcoffset",
    "runtime",
    "root_id",
    "parent_id",
}


@pytest.fixture(scope="module")
def site(remote_site: RemoteSite) -> RemoteSite:
    for node, (kind, *options) in KINDS.items():
        remote_site.worker(kind, node, *options, task_send_sent_event=True)
    return remote_site


@pytest.fixture(scope="module")
def events(site: RemoteSite) -> Iterator[Events]:
    with site.events() as captured:
        yield captured


def told(events: Events, task_id: str, last: str) -> list[dict[str, Any]]:
    """A task's events, up to the last one, in the order of their times; those of a retry come when they may."""
    wait_for(lambda: any(event["type"] == last for event in events.of(task_id)))
    if any(event["type"] == "task-retried" for event in events.of(task_id)):
        # Ours tells that it has sent the retry once the broker has confirmed it, which may be late.
        wait_for(lambda: any(event["type"] == "task-sent" for event in events.of(task_id)))
    found = sorted(events.of(task_id), key=lambda event: event["timestamp"])
    if any(event["type"] == "task-retried" for event in found):
        # A stock worker receives the retry before it is due, and even before it has told of it.
        found.sort(key=lambda event: (event["type"], event.get("retries", 0)))
    return found


def compare(ours: list[dict[str, Any]], stock: list[dict[str, Any]]) -> None:
    assert [event["type"] for event in ours] == [event["type"] for event in stock]
    for mine, theirs in zip(ours, stock, strict=True):
        assert set(mine) == set(theirs), mine["type"]
        for name in set(mine) - _OWN:
            assert mine[name] == theirs[name], (mine["type"], name)
        assert type(mine.get("traceback")) is type(theirs.get("traceback"))


@pytest.mark.parametrize(
    ("task", "args", "last"),
    [
        ("add", (1, 2), "task-succeeded"),
        ("fail", ("too bad",), "task-failed"),
        ("retry", (), "task-succeeded"),
        ("reject", (), "task-rejected"),
        ("ignore", (), "task-started"),
    ],
)
def test_events_have_the_same_order_and_fields(
    site: RemoteSite, events: Events, task: str, args: Any, last: str
) -> None:
    ours, stock = (told(events, site.send(node, task, *args).id, last) for node in KINDS)
    compare(ours, stock)


def test_a_failure_is_shown_alike(site: RemoteSite, events: Events) -> None:
    ours, stock = (told(events, site.send(node, "fail", "too bad").id, "task-failed")[-1] for node in KINDS)
    assert ours["exception"] == stock["exception"] == "ValueError('too bad')"
    assert ours["traceback"].splitlines()[-1] == stock["traceback"].splitlines()[-1]


def test_a_task_that_was_revoked_before_it_ran(site: RemoteSite, events: Events) -> None:
    for node in KINDS:
        site.control(node, "revoke", task_id=f"early-{node}")
    ours, stock = (
        told(events, site.send(node, "add", 1, 2, task_id=f"early-{node}").id, "task-revoked")
        for node in KINDS
    )
    compare(ours, stock)


def test_a_task_that_has_expired(site: RemoteSite, events: Events) -> None:
    ours, stock = (
        told(events, site.send(node, "add", 1, 2, expires=-5).id, "task-revoked") for node in KINDS
    )
    compare(ours, stock)


@pytest.mark.parametrize("remote_site", ["redis"], indirect=True)
def test_a_task_that_was_terminated(site: RemoteSite, events: Events) -> None:
    ended = {}
    for node in KINDS:
        result = site.send(node, "wait", f"terminated-{node}")
        site.notes(f"start terminated-{node}", 1)
        wait_for(lambda node=node: site.inspect(node, "active"))
        site.client.control.terminate(result.id, signal="TERM", destination=[f"{node}@site"])
        ended[node] = told(events, result.id, "task-revoked")
    assert ended["ours"][-1]["terminated"] is True
    assert ended["ours"][-1]["signum"] == int(ended["stock"][-1]["signum"])
    compare(ended["ours"], ended["stock"])


def test_workers_tell_the_same_of_themselves(site: RemoteSite, events: Events) -> None:
    def idle(node: str) -> list[dict[str, Any]]:
        """The heartbeats between tasks."""
        told = events.of_worker(f"{node}@site", "worker-heartbeat")
        return [each for each in told if not each["active"]]

    ours, stock = (wait_for(lambda node=node: idle(node))[-1] for node in KINDS)
    assert set(ours) == set(stock)
    for name in ("freq", "sw_ident", "sw_ver", "sw_sys", "active"):
        assert ours[name] == stock[name]
    leaving = site.worker("ours", "leaving")
    wait_for(lambda: events.of_worker("leaving@site", "worker-online"))
    leaving.terminate()
    leaving.wait()
    offline = wait_for(lambda: events.of_worker("leaving@site", "worker-offline"))[0]
    assert {"freq", "sw_ident", "sw_ver", "sw_sys"} <= set(offline)


def test_native_publishing_sends_task_sent(site: RemoteSite, events: Events) -> None:
    settings = {"task_send_sent_event": True, "task_default_queue": "ours"}
    app = remote_app.make_app("ours", site.url, site.folder, settings)
    stock = remote_app.make_app("stock", site.url, site.folder, settings)

    async def enqueue() -> str:
        async with app:
            handle = await app.enqueue("add", (1, 2))
            assert await handle.result(10) == 3
            return handle.id

    sent = [asyncio.run(enqueue()), stock.send_task("add", (1, 2)).id]
    for task_id in sent:  # who publishes may tell of it after the worker has told of the rest
        wait_for(lambda task_id=task_id: [each for each in events.of(task_id) if each["type"] == "task-sent"])
    ours, theirs = (told(events, task_id, "task-succeeded") for task_id in sent)
    assert ours[0]["type"] == "task-sent"
    compare(ours, theirs)
    for name in ("args", "eta", "exchange", "queue", "routing_key"):
        assert ours[0][name] == theirs[0][name]
    assert ours[0]["hostname"].startswith("gen")


def test_a_monitors_state_has_it_all(site: RemoteSite, events: Events) -> None:
    result = site.send("ours", "add", 20, 3)
    told(events, result.id, "task-succeeded")
    state = State()
    for event in list(events):
        state.event(dict(event))
    task = state.tasks[result.id]
    assert (task.state, task.name, task.args, task.result) == ("SUCCESS", "add", "(20, 3)", "23")
    assert task.worker.hostname == "ours@site"
    assert task.runtime is not None
    assert {task.received, task.started, task.succeeded} - {None}
