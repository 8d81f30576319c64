"""Remote control against a stock Celery client: in memory, in one SQLite file, and over a real Redis."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker import state as worker_state
from celery.worker.control import Panel, inspect_command
from celery.worker.request import Request
from kombu.transport.redis import MultiChannelPoller
from tests.unit.worker.control_site import HOST, Execution, Site, make_app, wait_until


async def test_stock_inspect_and_ping_find_the_worker(any_site: Site) -> None:
    ping = await asyncio.to_thread(any_site.client.control.ping, destination=[HOST], timeout=10, limit=1)
    assert ping == [{HOST: {"ok": "pong"}}]
    inspect = any_site.client.control.inspect(destination=[HOST], timeout=5, limit=1)
    assert "shop.add" in (await asyncio.to_thread(inspect.registered))[HOST]
    assert (await asyncio.to_thread(inspect.clock))[HOST]["clock"] > 0
    assert (await asyncio.to_thread(inspect.scheduled))[HOST] == []
    assert (await asyncio.to_thread(inspect.conf))[HOST]["task_default_queue"] == "celery"
    assert "software" in (await asyncio.to_thread(inspect.report))[HOST]["ok"]


async def test_active_and_reserved_show_executions_as_celery_does(any_site: Site) -> None:
    any_site.worker.run(Execution("one"), Execution("two", started=False, time_start=None))
    active = await any_site.ask("active", safe=False)
    stock = SimpleNamespace(
        id="one", name="shop.add", _args=[1, 2], _kwargs={}, _type="shop.add", _hostname=HOST,
        time_start=1_700_000_000.5, acknowledged=False, worker_pid=os.getpid(),
        delivery_info={"exchange": "", "routing_key": "celery", "priority": 0, "redelivered": False},
    )  # fmt: skip
    assert active == [Request.info(stock)]
    assert (await any_site.ask("active", safe=True))[0]["args"] == "(1, 2)"
    assert [info["id"] for info in await any_site.ask("reserved")] == ["two"]
    found = await any_site.ask("query_task", ids=["one", "two", "three"])
    assert {task_id: state for task_id, (state, _) in found.items()} == {"one": "active", "two": "reserved"}


async def test_the_mirror_is_gone_after_the_command(site: Site) -> None:
    site.worker.run(Execution("one"))
    assert len(await site.ask("active")) == 1
    assert not worker_state.requests
    assert not worker_state.active_requests
    site.worker.running.clear()
    assert await site.ask("active") == []


async def test_arguments_that_json_refuses_are_shown_all_the_same(site: Site) -> None:
    site.worker.run(Execution("one", args=(object(),)))
    assert "object object" in (await site.ask("active"))[0]["args"][0]


async def test_stats_counts_and_names_the_broker_without_its_password(any_site: Site) -> None:
    any_site.worker.totals = {"shop.add": 7}
    stats = await any_site.ask("stats")
    assert stats["total"] == {"shop.add": 7}
    assert stats["pid"] == os.getpid()
    assert stats["broker"]["transport"] in ("memory", "redis", "sqlite")
    assert "password" not in stats["broker"]
    assert stats["prefetch_count"] == 4
    assert stats["pool"]["max-concurrency"] == 4


async def test_revoke_reaches_the_worker_and_is_remembered(any_site: Site) -> None:
    any_site.worker.run(Execution("one"))
    answer = await any_site.ask("revoke", task_id=["one"], terminate=True, signal="SIGKILL")
    assert answer == {"ok": "terminate: one"}
    assert await any_site.worker.was_told() == ("on_revoke", ("one",), True, "SIGKILL")
    assert "flagged as revoked" in (await any_site.ask("revoke", task_id="later"))["ok"]
    assert await any_site.worker.was_told() == ("on_revoke", ("later",), False, None)
    assert sorted(await any_site.ask("revoked")) == ["later", "one"]
    assert await asyncio.to_thread(any_site.app.AsyncResult("later")._get_task_meta)
    assert any_site.worker.told.empty()


async def test_revoke_by_stamped_headers_ends_only_what_bears_the_stamp(site: Site) -> None:
    site.worker.run(Execution("one", stamps={"batch": ["b1"]}), Execution("two", stamps={"batch": ["b2"]}))
    await site.ask("revoke_by_stamped_headers", headers={"batch": ["b1"]}, terminate=True, signal="SIGTERM")
    told = await site.worker.was_told()
    assert told == ("on_terminate", ("one",), 15)
    await site.ask("ping")
    assert site.worker.told.empty()
    assert worker_state.revoked_stamps["batch"] == ["b1"]


async def test_shutdown_becomes_a_callback_on_the_loop(site: Site) -> None:
    await site.cast("shutdown")
    assert await site.worker.was_told() == ("on_shutdown",)
    assert await site.ask("ping") == {"ok": "pong"}  # heard until the worker itself stops


async def test_queues_come_and_go(site: Site) -> None:
    assert await site.ask("add_consumer", queue="extra") == {"ok": "add consumer extra"}
    assert await site.worker.was_told() == ("on_add_queue", "extra")
    assert {queue["name"] for queue in await site.ask("active_queues")} == {"celery", "extra"}
    await site.ask("cancel_consumer", queue="extra")
    assert await site.worker.was_told() == ("on_cancel_queue", "extra")
    assert {queue["name"] for queue in await site.ask("active_queues")} == {"celery"}
    await site.ask("cancel_consumer", queue="extra")
    assert site.worker.told.empty()


async def test_the_pool_grows_and_keeps_a_slot_when_it_shrinks(site: Site) -> None:
    assert await site.ask("pool_grow", n=3) == {"ok": "pool will grow"}
    assert await site.worker.was_told() == ("on_pool_grow", 3)
    assert await site.ask("pool_shrink", n=3) == {"ok": "pool will shrink"}
    assert await site.worker.was_told() == ("on_pool_shrink", 3)
    assert "at least one slot stays" in (await site.ask("pool_shrink", n=4))["error"]


async def test_limits_are_set_and_announced_for_the_task(site: Site) -> None:
    assert "ok" in await site.ask("rate_limit", task_name="shop.add", rate_limit="10/m")
    assert await site.worker.was_told() == ("on_rate_limit", "shop.add")
    assert site.app.tasks["shop.add"].rate_limit == "10/m"
    assert await site.ask("rate_limit", task_name="shop.none", rate_limit="10/m") == {"error": "unknown task"}
    assert "ok" in await site.ask("time_limit", task_name="shop.add", soft=1, hard=2)
    assert await site.worker.was_told() == ("on_time_limit", "shop.add")
    assert await site.ask("time_limit", task_name="shop.none", soft=1) == {"error": "unknown task"}
    assert site.worker.told.empty()


async def test_what_cannot_be_done_is_answered_with_a_reason(site: Site) -> None:
    assert "Autoscale not enabled" in (await site.ask("autoscale", max=4, min=1))["error"]
    assert "Pool restarts not enabled" in (await site.ask("pool_restart"))["error"]
    site.app.conf.worker_pool_restarts = True
    assert "restart the worker" in (await site.ask("pool_restart"))["error"]


async def test_unknown_commands_are_answered_and_logged_once(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        assert await site.ask("no_such_command") == {"error": "KeyError('no_such_command')"}
    assert [record.message for record in caplog.records].count(
        "No such control command: no_such_command"
    ) == 1


async def test_a_users_command_sees_the_requests_and_its_error_is_answered(site: Site) -> None:
    @inspect_command()
    def longest(state: Any, fail: bool = False) -> list[str]:
        if fail:
            raise LookupError("nothing here")
        return [request.id for request in worker_state.active_requests]

    try:
        site.worker.run(Execution("one"))
        assert await site.ask("longest") == ["one"]
        assert await site.ask("longest", fail=True) == {"error": "LookupError('nothing here')"}
        assert await site.ask("ping") == {"ok": "pong"}
    finally:
        Panel.data.pop("longest")


async def test_a_malformed_command_does_not_end_remote_control(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    def broadcast_nonsense() -> None:
        with site.client.connection_for_write() as connection, connection.Producer() as producer:
            exchange = site.client.control.mailbox.exchange
            producer.publish(["no", "command"], exchange=exchange.name, declare=[exchange])

    await asyncio.to_thread(broadcast_nonsense)
    assert await site.ask("ping") == {"ok": "pong"}
    assert "Control command error" in caplog.text


async def test_hello_shares_revoked_ids_both_ways(site: Site) -> None:
    await site.ask("revoke", task_id=["mine"])
    answer = await site.ask("hello", from_node="there@test", revoked=["theirs"])
    assert set(answer["revoked"]) == {"mine", "theirs"}
    assert answer["clock"] > 0


async def test_task_events_are_switched_by_remote(site: Site) -> None:
    assert not site.control.events_enabled
    assert await site.ask("enable_events") == {"ok": "task events enabled"}
    assert site.control.events_enabled
    assert await site.ask("enable_events") == {"ok": "task events already enabled"}
    assert await site.ask("disable_events") == {"ok": "task events disabled"}
    assert not site.control.events_enabled


async def test_a_broker_without_fanout_has_no_remote_control(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "celeriac.worker.control")
    site = Site(make_app("worker", f"sqla+sqlite:///{tmp_path}/broker.db"), make_app("client", "memory://"))
    site.control.start()
    await asyncio.to_thread(wait_until, lambda: caplog.text.count(": off, ") == 2)
    assert not site.control.listening.is_set()
    assert not site.control.events_enabled
    await asyncio.to_thread(site.control.stop, 5)
    assert not site.control.alive


def test_kombu_still_has_the_health_check_that_idle_subscriptions_need() -> None:
    assert callable(MultiChannelPoller.maybe_check_subclient_health)
