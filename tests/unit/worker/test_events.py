"""Events as a stock receiver sees them, and what becomes of them and of commands when the broker goes away."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

import pytest
from celery import signals
from tests.services import RedisServer
from tests.unit.worker.control_site import HOST, Execution, Site, make_app, received_events, wait_until

from celeriac.worker.events import EventPublisher


async def test_a_monitor_sees_the_worker_and_its_tasks_in_order(url: str, sites: Any) -> None:
    client = make_app("monitor", url)
    with received_events(client, until="worker-offline") as received:
        site = await sites(url, enable_events=True, heartbeat_interval=0.1)
        site.worker.run(Execution("one"))
        site.worker.totals = {"shop.add": 3}
        before = time.time()
        for number in range(250):
            site.control.send_event("task-received", uuid=str(number), name="shop.add")
        with received_events(client, until="worker-heartbeat") as beat:
            await asyncio.to_thread(beat.result, 10)
        await asyncio.to_thread(site.control.stop, 5)
        events = await asyncio.to_thread(received.result, 10)
    client.close()
    assert events[0]["type"] == "worker-online"
    assert events[-1]["type"] == "worker-offline"
    tasks = [event for event in events if event["type"] == "task-received"]
    assert [event["uuid"] for event in tasks] == [str(number) for number in range(250)]
    assert {"hostname", "utcoffset", "pid", "clock", "timestamp", "name"} <= tasks[0].keys()
    assert tasks[0]["hostname"] == HOST
    assert before <= tasks[0]["timestamp"] <= tasks[-1]["timestamp"] <= time.time()
    assert [event["clock"] for event in tasks] == sorted({event["clock"] for event in tasks})
    heartbeat = [event for event in events if event["type"] == "worker-heartbeat"][-1]
    assert heartbeat["active"] == 1
    assert heartbeat["processed"] == 3
    assert heartbeat["freq"] == 0.1
    assert heartbeat["sw_ident"] == "py-celery"
    assert len(heartbeat["loadavg"]) == 3


async def test_the_first_heartbeat_is_sent_before_the_worker_counts_as_started() -> None:
    order: list[str] = []
    started = threading.Event()
    site = Site(make_app("worker", "memory://"), make_app("client", "memory://"))

    def heartbeat(**_: Any) -> None:
        if not order:
            # Nothing else is left to wait for, and yet it does not count as started.
            assert site.control.listening.wait(10)
            started.wait(0.3)
        order.append("heartbeat_sent")

    signals.heartbeat_sent.connect(heartbeat, weak=False)
    try:
        site.control.start()
        await site.control.started(10)
        order.append("started")
        started.set()
    finally:
        signals.heartbeat_sent.disconnect(heartbeat)
        await asyncio.to_thread(site.control.stop, 5)
        site.client.close()
    assert order[:2] == ["heartbeat_sent", "started"]


@pytest.mark.parametrize("options", [{"heartbeat_interval": None}, {"remote_control": False}], ids=str)
async def test_what_will_not_be_sent_is_not_waited_for(options: dict[str, Any]) -> None:
    site = Site(make_app("worker", "memory://"), make_app("client", "memory://"), **options)
    site.control.start()
    try:
        async with asyncio.timeout(10):
            await site.control.started(60)
    finally:
        await asyncio.to_thread(site.control.stop, 5)
        site.client.close()


async def test_without_subscribers_no_task_event_is_queued(sites: Any) -> None:
    site = await sites("memory://", heartbeat_interval=None)
    site.control.send_event("task-received", uuid="one")
    with received_events(site.client, until="custom-done") as received:
        site.control.send_event("custom-done", answer=42)
        events = await asyncio.to_thread(received.result, 10)
    assert [event["type"] for event in events] == ["custom-done"]


async def test_a_field_that_json_refuses_costs_no_event(sites: Any) -> None:
    site = await sites("memory://", heartbeat_interval=None, enable_events=True)
    with received_events(site.client, until="task-failed") as received:
        site.control.send_event("task-succeeded", uuid="one", result=object())
        site.control.send_event("task-failed", uuid="two")
        events = await asyncio.to_thread(received.result, 10)
    assert [event["uuid"] for event in events] == ["one", "two"]


def test_a_full_queue_drops_the_oldest_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    app = make_app("worker", "memory://")
    events = EventPublisher(app, HOST, load=dict, heartbeat_interval=None, task_events=True, limit=3)
    with received_events(app, until="task-5") as received:
        for number in range(6):
            events.send_event(f"task-{number}", uuid="one")
        events.start()
        assert [event["type"] for event in received.result(10)] == ["task-3", "task-4", "task-5"]
    events.request_stop()
    assert events.join(5)
    assert caplog.text.count("dropping the oldest") == 1


async def test_an_outage_is_logged_once_and_survived(
    sites: Any, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "celeriac.worker.control")
    site = await sites(redis_server.url, enable_events=True, heartbeat_interval=0.2)
    redis_server.kill()
    await asyncio.to_thread(wait_until, lambda: caplog.text.count("no connection to the broker") == 2)
    assert not site.control.listening.is_set()
    site.control.send_event("task-received", uuid="waiting")
    redis_server.start()
    with received_events(site.client, until="task-received") as received:
        events = await asyncio.to_thread(received.result, 20)
    assert events[-1]["uuid"] == "waiting"
    assert await asyncio.to_thread(site.control.listening.wait, 10)
    assert await site.ask("ping") == {"ok": "pong"}
    assert caplog.text.count("no connection to the broker") == 2  # one for each of the two connections


async def test_stopping_never_waits_for_a_dead_broker(sites: Any, redis_server: RedisServer) -> None:
    site = await sites(redis_server.url, enable_events=True)
    redis_server.kill()
    site.control.send_event("task-received", uuid="lost")
    started = time.monotonic()
    await asyncio.to_thread(site.control.stop, 3)
    assert time.monotonic() - started < 3.5
