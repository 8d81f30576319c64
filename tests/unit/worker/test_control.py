"""Remote control and events against a stock Celery client, over kombu's memory transport and a real Redis."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery
from celery.events import EventReceiver
from celery.worker import WorkController
from celery.worker import state as worker_state
from celery.worker.control import Panel, inspect_command
from celery.worker.request import Request

from celeriac.worker.control import ControlThread
from celeriac.worker.events import EventPublisher
from celeriac.worker.facade import ConsumerFacade

HOST = "here@test"
REDIS_SERVER = shutil.which("redis-server")


@dataclass
class Execution:
    id: str
    name: str = "shop.add"
    args: Any = (1, 2)
    kwargs: Any = field(default_factory=dict)
    started: bool = True
    stamps: dict[str, Any] = field(default_factory=dict)
    hostname: str = HOST
    time_start: float | None = 1_700_000_000.5
    acknowledged: bool = False
    worker_pid: int | None = field(default_factory=os.getpid)
    delivery_info: dict[str, Any] = field(
        default_factory=lambda: {"exchange": "", "routing_key": "celery", "priority": 0, "redelivered": False}
    )

    @property
    def type(self) -> str:
        return self.name

    @property
    def argsrepr(self) -> str:
        return repr(self.args)

    @property
    def kwargsrepr(self) -> str:
        return repr(self.kwargs)


class Worker:
    """A worker as far as remote control is concerned: what it runs, and what it was told."""

    def __init__(self) -> None:
        self.running: dict[str, Execution] = {}
        self.totals: dict[str, int] = {}
        self.told: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()

    def executions(self) -> list[Execution]:
        return list(self.running.values())

    def active_count(self) -> int:
        return sum(execution.started for execution in self.executions())

    def total_count(self) -> dict[str, int]:
        return self.totals

    def run(self, *executions: Execution) -> None:
        self.running.update({execution.id: execution for execution in executions})

    def __getattr__(self, name: str) -> Callable[..., None]:
        if not name.startswith("on_"):
            raise AttributeError(name)

        def tell(*args: Any) -> None:
            asyncio.get_running_loop()  # actions are called on the event loop
            self.told.put_nowait((name, *args))

        return tell

    async def was_told(self) -> tuple[Any, ...]:
        return await asyncio.wait_for(self.told.get(), 10)


class HeldConsumer:
    """What Celery's WorkController builds as its consumer."""

    def __init__(self, on_task_request: Any, *, app: Any, controller: Any, hostname: str, **_: Any) -> None:
        self.facade = ConsumerFacade(app, hostname, controller, Worker())
        self.blueprint = self.facade.blueprint


class Site:
    """One worker's remote control, and a stock client that talks to it."""

    def __init__(self, app: Celery, client: Celery, **options: Any) -> None:
        self.app, self.client = app, client
        self.controller = WorkController(app=app, hostname=HOST, pool="threads", concurrency=4)
        self.facade: ConsumerFacade = self.controller.consumer.facade
        self.worker: Worker = self.facade.actions
        self.control = ControlThread(
            self.facade,
            app=app,
            hostname=HOST,
            executions=self.worker,
            loop=asyncio.get_running_loop(),
            **options,
        )

    async def start(self) -> None:
        self.control.start()
        assert await asyncio.to_thread(self.control.listening.wait, 10)

    async def ask(self, command: str, **arguments: Any) -> Any:
        """The worker's answer to one command."""
        answers = await asyncio.to_thread(
            self.client.control.broadcast, command, arguments, [HOST], reply=True, timeout=10, limit=1
        )
        assert len(answers) == 1
        return answers[0][HOST]

    async def cast(self, command: str, **arguments: Any) -> None:
        await asyncio.to_thread(self.client.control.broadcast, command, arguments, [HOST])


class RedisServer:
    def __init__(self, directory: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.directory = directory
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        assert REDIS_SERVER is not None
        options = [
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
            str(self.directory),
        ]
        self.process = subprocess.Popen([REDIS_SERVER, *options], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert any("Ready to accept connections" in line for line in self.process.stdout)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    if REDIS_SERVER is None:
        if os.environ.get("REQUIRE_SERVICES"):
            pytest.fail("redis-server is not installed")
        pytest.skip("redis-server is not installed")
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


def make_app(name: str, url: str) -> Celery:
    app = Celery(name, broker=url, backend="cache+memory://", set_as_current=False)
    app.conf.broker_transport_options = {"polling_interval": 0.01} if url.startswith("memory") else {}
    app.conf.update(worker_consumer=HeldConsumer, broker_connection_timeout=1, task_default_queue="celery")
    app.finalize()

    @app.task(name="shop.add", shared=False)
    def add(a: int, b: int) -> int:
        return a + b

    return app


@pytest.fixture(params=["memory", "redis"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "memory":
        yield "memory://"
        return
    server = request.getfixturevalue("redis_server")
    yield server.url
    with redis.Redis.from_url(server.url) as client:
        client.flushall()


@pytest.fixture
async def sites() -> Any:
    started: list[Site] = []

    async def start(url: str, **options: Any) -> Site:
        site = Site(make_app("worker", url), make_app("client", url), **options)
        started.append(site)
        await site.start()
        return site

    yield start
    for site in started:
        await asyncio.to_thread(site.control.stop, 5)
        assert not site.control.alive
        site.client.close()
    worker_state.reset_state()


@pytest.fixture
async def site(url: str, sites: Any) -> Site:
    return await sites(url)


@contextmanager
def received_events(client: Celery, until: str) -> Iterator[Future[list[dict[str, Any]]]]:
    """Capture events as Flower does, up to the first one of type ``until``."""
    result: Future[list[dict[str, Any]]] = Future()
    ready = threading.Event()
    events: list[dict[str, Any]] = []

    class Receiver(EventReceiver):
        def on_consume_ready(self, *args: Any, **kwargs: Any) -> None:
            ready.set()

    def capture() -> None:
        with client.connection_for_read() as connection:
            receiver = Receiver(connection, app=client)

            def keep(event: dict[str, Any]) -> None:
                events.append(event)
                receiver.should_stop = event["type"] == until

            receiver.handlers["*"] = keep
            try:
                receiver.capture(timeout=10)
                result.set_result(events)
            except Exception as exc:
                result.set_exception(exc)
                raise

    thread = threading.Thread(target=capture, daemon=True)
    thread.start()
    assert ready.wait(10)
    yield result
    thread.join(10)


async def test_stock_inspect_and_ping_find_the_worker(site: Site) -> None:
    ping = await asyncio.to_thread(site.client.control.ping, destination=[HOST], timeout=10, limit=1)
    assert ping == [{HOST: {"ok": "pong"}}]
    inspect = site.client.control.inspect(destination=[HOST], timeout=5, limit=1)
    assert "shop.add" in (await asyncio.to_thread(inspect.registered))[HOST]
    assert (await asyncio.to_thread(inspect.clock))[HOST]["clock"] > 0
    assert (await asyncio.to_thread(inspect.scheduled))[HOST] == []
    assert (await asyncio.to_thread(inspect.conf))[HOST]["task_default_queue"] == "celery"
    assert "software" in (await asyncio.to_thread(inspect.report))[HOST]["ok"]


async def test_active_and_reserved_show_executions_as_celery_does(site: Site) -> None:
    site.worker.run(Execution("one"), Execution("two", started=False, time_start=None))
    active = await site.ask("active", safe=False)
    stock = SimpleNamespace(
        id="one", name="shop.add", _args=[1, 2], _kwargs={}, _type="shop.add", _hostname=HOST,
        time_start=1_700_000_000.5, acknowledged=False, worker_pid=os.getpid(),
        delivery_info={"exchange": "", "routing_key": "celery", "priority": 0, "redelivered": False},
    )  # fmt: skip
    assert active == [Request.info(stock)]
    assert (await site.ask("active", safe=True))[0]["args"] == "(1, 2)"
    assert [info["id"] for info in await site.ask("reserved")] == ["two"]
    found = await site.ask("query_task", ids=["one", "two", "three"])
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


async def test_stats_counts_and_names_the_broker_without_its_password(site: Site) -> None:
    site.worker.totals = {"shop.add": 7}
    stats = await site.ask("stats")
    assert stats["total"] == {"shop.add": 7}
    assert stats["pid"] == os.getpid()
    assert stats["broker"]["transport"] in ("memory", "redis")
    assert "password" not in stats["broker"]
    assert stats["prefetch_count"] == 4
    assert stats["pool"]["max-concurrency"] == 4


async def test_revoke_reaches_the_worker_and_is_remembered(site: Site) -> None:
    site.worker.run(Execution("one"))
    answer = await site.ask("revoke", task_id=["one"], terminate=True, signal="SIGKILL")
    assert answer == {"ok": "terminate: one"}
    assert await site.worker.was_told() == ("on_revoke", ("one",), True, "SIGKILL")
    assert "flagged as revoked" in (await site.ask("revoke", task_id="later"))["ok"]
    assert await site.worker.was_told() == ("on_revoke", ("later",), False, None)
    assert sorted(await site.ask("revoked")) == ["later", "one"]
    assert await asyncio.to_thread(site.app.AsyncResult("later")._get_task_meta)
    assert site.worker.told.empty()


async def test_revoke_by_stamped_headers_ends_only_what_bears_the_stamp(site: Site) -> None:
    site.worker.run(Execution("one", stamps={"batch": ["b1"]}), Execution("two", stamps={"batch": ["b2"]}))
    await site.ask("revoke_by_stamped_headers", headers={"batch": ["b1"]}, terminate=True, signal="SIGTERM")
    told = await site.worker.was_told()
    assert told[:3] == ("on_revoke", ("one",), True)
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
    sites: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, redis_server: RedisServer
) -> None:
    caplog.set_level(logging.INFO, "celeriac.worker.control")
    server = RedisServer(tmp_path)
    server.start()
    try:
        site = await sites(server.url, enable_events=True, heartbeat_interval=0.2)
        server.stop()
        await asyncio.to_thread(wait_until, lambda: caplog.text.count("no connection to the broker") == 2)
        assert not site.control.listening.is_set()
        site.control.send_event("task-received", uuid="waiting")
        server.start()
        with received_events(site.client, until="task-received") as received:
            events = await asyncio.to_thread(received.result, 20)
        assert events[-1]["uuid"] == "waiting"
        assert await asyncio.to_thread(site.control.listening.wait, 10)
        assert await site.ask("ping") == {"ok": "pong"}
        assert caplog.text.count("no connection to the broker") == 2  # one for each of the two connections
    finally:
        server.stop()


async def test_stopping_never_waits_for_a_dead_broker(
    sites: Any, tmp_path: Path, redis_server: RedisServer
) -> None:
    server = RedisServer(tmp_path)
    server.start()
    site = await sites(server.url, enable_events=True)
    server.stop()
    site.control.send_event("task-received", uuid="lost")
    started = time.monotonic()
    await asyncio.to_thread(site.control.stop, 3)
    assert time.monotonic() - started < 3.5


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


def wait_until(condition: Callable[[], bool], timeout: float = 15) -> None:
    """For conditions that another process or the log signals in no other way."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
