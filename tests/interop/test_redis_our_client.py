"""Our client, whose tasks run in stock workers: those of a plain Celery app, and a ``-P processes`` worker of ours."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import chord, group
from tests.interop.redis_site import Site, unique

from celeriac import Celery
from celeriac.errors import TaskFailed, TaskRevoked

pytestmark = pytest.mark.timeout(60)

STOCK = ("prefork", "threads", "solo", "ours-prefork")

OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "countdown": {"countdown": 0.4},
    "a countdown of a timedelta": {"countdown": timedelta(seconds=0.4)},
    "aware eta": {"eta": lambda: datetime.now().astimezone() + timedelta(seconds=0.4)},
    "naive eta": {"eta": lambda: datetime.now(UTC).replace(tzinfo=None) + timedelta(seconds=0.4)},
    "expires": {"expires": 60},
    "priority": {"priority": 7},
    "gzip": {"compression": "gzip"},
    "zlib": {"compression": "zlib"},
    "headers": {"headers": {"x-tenant": "acme", "x-deep": {"a": [1, None]}}},
    "time limits": {"time_limit": 30, "soft_time_limit": 20},
    "shadow": {"shadow": "another name"},
    "reply to": {"reply_to": "somebody"},
    "ids": {"task_id": lambda: unique("mine"), "root_id": "root", "parent_id": "parent", "group_id": "group"},
    "owner": {"owner": "ann"},
}

#: What a worker of either kind must tell of its call, by option.
TOLD: dict[str, Callable[[dict[str, Any]], bool]] = {
    "expires": lambda told: told["expires"] > datetime.now(UTC).isoformat(),
    "priority": lambda told: told["delivery_info"]["priority"] == 7,
    "headers": lambda told: told["headers"] == {"x-tenant": "acme", "x-deep": {"a": [1, None]}},
    "time limits": lambda told: told["timelimit"] == [30, 20],
    "shadow": lambda told: told["shadow"] == "another name",
    "reply to": lambda told: told["reply_to"] == "somebody",
    "ids": lambda told: (told["root_id"], told["parent_id"], told["group"]) == ("root", "parent", "group"),
}


@pytest.fixture(scope="module")
def site(redis_site: Site) -> Site:
    redis_site.shared(*STOCK)
    return redis_site


@pytest.fixture(scope="module")
def made(site: Site) -> Celery:
    return site.our_client()


@pytest.fixture
async def app(made: Celery) -> AsyncIterator[Celery]:
    async with made:
        yield made


def now_given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value() if callable(value) else value for name, value in options.items()}


@pytest.mark.parametrize("queue", ["prefork", "ours-prefork"])
@pytest.mark.parametrize("name", OPTIONS)
async def test_every_option_reaches_a_stock_worker(app: Celery, name: str, queue: str) -> None:
    options = now_given(OPTIONS[name])
    begun = datetime.now(UTC)
    handle = await app.tasks["describe"].using(queue=queue, **options).enqueue("ä☃", key=[1])
    told = await handle.result(15)

    assert (told["args"], told["kwargs"]) == (["ä☃"], {"key": [1]})
    assert told["id"] == told["correlation_id"] == handle.id == options.get("task_id", handle.id)
    assert told["hostname"] == f"{queue}@site"
    assert TOLD.get(name, lambda told: True)(told)
    if "countdown" in options or "eta" in options:
        assert datetime.now(UTC) - begun >= timedelta(seconds=0.39)
    record = await handle.record()
    assert (record.state, record.name, record.queue) == ("SUCCESS", "describe", queue)
    assert (record.args, record.kwargs) == (["ä☃"], {"key": [1]})
    assert record.owner == options.get("owner")


@pytest.mark.parametrize("queue", STOCK)
async def test_a_delayed_task_waits_in_redis_and_not_in_the_worker(
    app: Celery, site: Site, queue: str
) -> None:
    handle = await app.tasks["add"].using(queue=queue, countdown=0.6).enqueue(1, 2)

    assert site.redis.zcard(f"celeriac:delayed:{queue}") == 1
    assert not any(handle.id in held for held in site.redis.hvals("unacked"))
    assert await app.queue_size(queue) == 0
    assert await handle.state() == "PENDING"
    assert await handle.result(10) == 3


@pytest.mark.parametrize("queue", STOCK)
async def test_many_at_once(app: Celery, queue: str) -> None:
    signatures = [app.tasks["add"].s(n, n).set(queue=queue) for n in range(40)]
    handles = await app.enqueue_many(signatures)

    assert [await handle.result(15) for handle in handles] == [2 * n for n in range(40)]


@pytest.mark.parametrize("queue", STOCK)
async def test_by_name_and_by_signature(app: Celery, queue: str) -> None:
    by_name = await app.enqueue("add", (1,), {"y": 2}, queue=queue)
    signature = await app.enqueue(app.signature("add", (1, 2), queue=queue))

    assert await by_name.result(15) == await signature.result(15) == 3


@pytest.mark.parametrize("queue", ["prefork", "ours-prefork"])
async def test_the_synchronous_way(app: Celery, queue: str) -> None:
    def publish_and_wait() -> Any:
        result = app.tasks["add"].apply_async((1, 2), queue=queue, countdown=0.2)
        return result.id, result.get(timeout=15)

    task_id, value = await asyncio.to_thread(publish_and_wait)
    record = await app.handle(task_id).record()

    assert value == record.result == 3
    assert record.args == [1, 2]


@pytest.mark.parametrize("queue", STOCK)
async def test_groups_are_waited_for_the_synchronous_way(app: Celery, queue: str) -> None:
    def publish_and_wait() -> Any:
        parts = group([app.tasks["add"].s(n, 1).set(queue=queue) for n in range(5)])
        header = [app.tasks["add"].s(n, 1).set(queue=queue) for n in range(5)]
        counted = chord(header, app.tasks["total"].s().set(queue=queue))
        return parts.apply_async().get(timeout=15), counted.apply_async().get(timeout=15)

    assert await asyncio.to_thread(publish_and_wait) == ([1, 2, 3, 4, 5], 15)


@pytest.mark.parametrize("queue", STOCK)
async def test_events_tell_the_course(app: Celery, queue: str) -> None:
    handle = await app.tasks["echo"].using(queue=queue, countdown=0.3).enqueue({"one": [1]})
    states = [event.data["state"] async for event in handle.events()]

    # A stock worker says nothing of the start unless it is told to by ``task_track_started``.
    assert states[0] == "PENDING"
    assert states[-1] == "SUCCESS"
    assert await handle.result() == {"one": [1]}


@pytest.mark.parametrize("queue", STOCK)
async def test_a_failure_is_what_was_raised(app: Celery, queue: str) -> None:
    handle = await app.tasks["fail"].using(queue=queue).enqueue("sorry")

    with pytest.raises(ValueError, match="sorry") as caught:
        await handle.result(15)
    assert isinstance(caught.value.__cause__, TaskFailed)
    record = await handle.record()
    assert record.state == "FAILURE"
    assert record.error == "ValueError - sorry"
    assert record.traceback is not None
    assert record.traceback.splitlines()[-1] == "ValueError: sorry"


@pytest.mark.parametrize("queue", STOCK)
@pytest.mark.parametrize("task", ["retry", "autoretry"])
async def test_retries(app: Celery, queue: str, task: str) -> None:
    handle = await app.enqueue(task, (2,), queue=queue)
    states = [event.data["state"] async for event in handle.events()]

    assert await handle.result(15) == 2
    assert "RETRY" in states
    assert states[-1] == "SUCCESS"


@pytest.mark.parametrize("queue", STOCK)
async def test_callbacks_and_errbacks(app: Celery, site: Site, queue: str) -> None:
    name, tasks = unique(), app.tasks
    called = tasks["note"].si(name, "done").set(queue=queue)
    failed = tasks["note"].si(name, "failed").set(queue=queue)

    await tasks["add"].using(queue=queue, link=called, link_error=failed).enqueue(1, 2)
    assert await asyncio.to_thread(site.notes, name, 1) == ["done"]
    await tasks["fail"].using(queue=queue, link=called, link_error=failed).enqueue("no")
    assert await asyncio.to_thread(site.notes, name, 2) == ["done", "failed"]


@pytest.mark.parametrize("queue", STOCK)
async def test_an_ignored_result_is_not_kept(app: Celery, site: Site, queue: str) -> None:
    name = unique()
    handle = await app.tasks["note"].using(queue=queue, ignore_result=True).enqueue(name, "ran")
    await asyncio.to_thread(site.notes, name, 1)

    assert (await handle.record()).result is None


@pytest.mark.parametrize("queue", ["prefork", "ours-prefork"])
async def test_a_task_that_has_expired_does_not_run(app: Celery, site: Site, queue: str) -> None:
    name = unique()
    handle = await app.tasks["note"].using(queue=queue, countdown=0.3, expires=0.1).enqueue(name, "never")

    with pytest.raises(TaskRevoked):
        await handle.result(15)
    assert site.notes(name) == []


@pytest.mark.parametrize("queue", STOCK)
async def test_control_revokes_what_waits(app: Celery, site: Site, queue: str) -> None:
    name = unique()
    handle = await app.tasks["note"].using(queue=queue, countdown=0.6).enqueue(name, "never")
    await asyncio.to_thread(app.control.revoke, handle.id)

    with pytest.raises(TaskRevoked):
        await handle.result(15)
    assert await handle.state() == "REVOKED"
    assert site.notes(name) == []


async def test_cancelling_holds_in_workers_of_ours_with_processes(app: Celery, site: Site) -> None:
    name = unique()
    handle = await app.tasks["note"].using(queue="ours-prefork", countdown=0.4).enqueue(name, "never")
    after = await app.tasks["note"].using(queue="ours-prefork", countdown=0.4).enqueue(name, "after")
    assert await handle.cancel()
    await after.result(15)

    with pytest.raises(TaskRevoked):
        await handle.result()
    # Tasks of one queue start in order, and each of the two processes has had its turn.
    await app.enqueue_many([app.tasks["note"].si(name, "last").set(queue="ours-prefork")] * 2)
    assert sorted(await asyncio.to_thread(site.notes, name, 3)) == ["after", "last", "last"]


@pytest.mark.parametrize("queue", ["prefork", "ours-prefork"])
async def test_control_terminates_what_runs(app: Celery, site: Site, queue: str) -> None:
    name = unique()
    handle = await app.tasks["wait"].using(queue=queue).enqueue(name)
    await asyncio.to_thread(site.notes, name, 1)
    await asyncio.to_thread(app.control.revoke, handle.id, terminate=True, signal="SIGKILL")

    with pytest.raises(TaskRevoked):
        await handle.result(15)
    site.open_gate(name)


async def test_progress_and_values_are_told_by_workers_of_ours_alone(app: Celery, site: Site) -> None:
    site.shared("ours")
    handle = await app.enqueue("count", (3,), queue="ours")
    kinds = [event.kind async for event in handle.events()]

    assert kinds.count("value") == 3
    assert kinds.count("progress") == 1
    assert await handle.result() == 3


async def test_states_of_a_stock_worker_are_followed(app: Celery, site: Site) -> None:
    name = unique()
    handle = await app.enqueue("halfway", (name,), queue="prefork")
    states = []
    async for event in handle.events():
        states.append(event.data["state"])
        if event.data["state"] == "HALFWAY":
            assert (await handle.record()).result == {"done": 1}
            site.open_gate(name)

    assert states == ["PENDING", "HALFWAY", "SUCCESS"]


async def test_canvas_leaves_no_subscription_behind(app: Celery, site: Site) -> None:
    await asyncio.to_thread(gc.collect)
    before = site.redis.pubsub_channels("celery-task-meta-*")
    tasks = app.tasks
    for _ in range(10):
        header = [tasks["add"].s(1, 1).set(queue="prefork") for _ in range(3)]
        handle = await app.enqueue(chord(header, tasks["total"].s().set(queue="prefork")))
        assert await handle.result(15) == 6

    async with asyncio.timeout(5):  # what has been waited for is still being unsubscribed from
        while site.redis.pubsub_channels("celery-task-meta-*") != before:
            await asyncio.sleep(0.01)
