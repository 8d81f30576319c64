"""Celery's own Redis backend and ours on one server: the same keys, read and written from both sides."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import celery
import pytest
import redis
from celery.backends.redis import RedisBackend as StockBackend
from celery.contrib.testing.worker import start_worker
from celery.signals import setup_logging
from tests.services.redis import RedisServer

import celeriac
from celeriac.backends.redis import RedisBackend
from celeriac.errors import ConfigurationError, StoreUnavailable
from celeriac.stores.base import Store
from celeriac.stores.records import EventDraft, RecordFilter, Transition
from celeriac.stores.urls import store_for

FAILURE = '{"exc_type": "ValueError", "exc_message": ["no"], "exc_module": "builtins"}'
NOW = 1_790_000_000.25


def stock_app(url: str, **settings: Any) -> Any:
    app = celery.Celery("stock", broker="memory://", backend=url, set_as_current=False)
    app.conf.update(
        result_extended=True, **{"broker_transport_options": {"polling_interval": 0.01}, **settings}
    )
    return app


def our_app(url: str, **settings: Any) -> Any:
    app = celeriac.Celery("ours", broker="memory://", backend=url, set_as_current=False)
    app.conf.update(**settings)
    return app


def request(**facts: Any) -> Any:
    """What a stock worker knows of the task that it runs."""
    known = {
        "task": "shop.send",
        "args": ["x"],
        "kwargs": {"n": 1},
        "hostname": "celery@stock",
        "retries": 0,
        "delivery_info": {"routing_key": "mail"},
        "children": [],
        "group": None,
        "parent_id": None,
        "root_id": None,
        "chord": None,
        "chain": None,
        "errbacks": None,
        "ignore_result": False,
    }
    return SimpleNamespace(**{**known, **facts})


def step(task_id: str, state: str, seconds: float = 0, **facts: Any) -> Transition:
    return Transition(task_id=task_id, state=state, at=NOW + seconds, **facts)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as made:
        made.flushdb()
        yield made


@pytest.fixture
def stock(redis_url: str, client: redis.Redis) -> Iterator[Any]:
    made = stock_app(redis_url)
    yield made
    made.close()


@pytest.fixture
def ours(redis_url: str, client: redis.Redis) -> Iterator[Any]:
    made = our_app(redis_url)
    yield made
    made.close()


@pytest.fixture
async def store(redis_url: str, client: redis.Redis) -> AsyncIterator[Store]:
    made = store_for(redis_url)
    await made.open()
    yield made
    await made.close()


class TestStockReadsOurs:
    async def test_every_state(self, store: Store, stock: Any) -> None:
        facts = {"name": "shop.send", "args": '["ü"]', "kwargs": '{"n": 1}', "queue": "mail", "retries": 2}
        states = ("STARTED", "RETRY", "SUCCESS", "FAILURE")
        await store.transition([step(state, "PENDING", **facts) for state in (*states, "PENDING")])
        await store.transition(
            [
                step("STARTED", "STARTED", 1, worker="w@1"),
                step("RETRY", "RETRY", 1, result=FAILURE, traceback='Traceback "of\n it'),
                step("SUCCESS", "SUCCESS", 1, result='{"n": [1, null]}', children='[[["c", null], null]]'),
                step("FAILURE", "FAILURE", 1, result=FAILURE, traceback="Traceback"),
            ]
        )
        for state in states:
            result = stock.AsyncResult(state)
            assert result.state == state
            assert (result.name, result.args, result.kwargs) == ("shop.send", ["ü"], {"n": 1})
            assert (result.queue, result.retries) == ("mail", 2)
        assert stock.AsyncResult("PENDING").state == "PENDING"
        assert stock.AsyncResult("STARTED").worker == "w@1"
        assert repr(stock.AsyncResult("RETRY").result) == "ValueError('no')"
        assert stock.AsyncResult("RETRY").traceback == 'Traceback "of\n it'
        success = stock.AsyncResult("SUCCESS")
        assert success.get(timeout=1) == {"n": [1, None]}
        assert success.date_done.isoformat() == "2026-09-21T14:13:21.250000+00:00"
        assert [child.id for child in success.children] == ["c"]
        with pytest.raises(ValueError, match="no"):
            stock.AsyncResult("FAILURE").get(timeout=1)

    async def test_the_key_has_what_celery_writes(
        self, store: Store, stock: Any, client: redis.Redis
    ) -> None:
        facts = {"group_id": "g", "parent_id": "p", "queue": "mail", "retries": 0, "worker": "celery@stock"}
        await store.transition(
            [step("a", "SUCCESS", name="shop.send", args='["x"]', kwargs='{"n": 1}', result="[1.5]", **facts)]
        )
        stock.backend.mark_as_done("b", [1.5], request=request(group="g", parent_id="p"))
        written, stocks = (json.loads(client.get(f"celery-task-meta-{id_}") or b"") for id_ in "ab")
        for meta in (written, stocks):
            assert meta.pop("date_done").endswith("+00:00")
            assert meta.pop("task_id") in "ab"
        assert written == stocks
        lives = [client.ttl(f"celery-task-meta-{id_}") for id_ in "ab"]
        assert abs(int(lives[0]) - int(lives[1])) <= 2

    async def test_a_task_that_has_not_started_has_no_key(self, store: Store, client: redis.Redis) -> None:
        await store.transition([step("a", "PENDING")])
        assert not client.exists("celery-task-meta-a")
        await store.transition([step("a", "SUCCESS", 1), step("a", "PENDING", 2, replay=True)])
        assert not client.exists("celery-task-meta-a")

    async def test_a_waiting_client_hears_of_the_end(self, store: Store, stock: Any) -> None:
        await store.transition([step("a", "PENDING")])
        waiting = asyncio.create_task(asyncio.to_thread(stock.AsyncResult("a").get, timeout=10))
        while not await _subscribers(stock, "celery-task-meta-a"):
            await asyncio.sleep(0.01)
        await store.transition([step("a", "STARTED", 1), step("a", "SUCCESS", 1, result="5")])
        begun = time.monotonic()
        assert await waiting == 5
        assert time.monotonic() - begun < 2

    async def test_a_cancelled_task(self, store: Store, stock: Any) -> None:
        await store.transition([step("a", "PENDING")])
        await store.request_cancel(["a"])
        with pytest.raises(celery.exceptions.TaskRevokedError, match="cancelled"):
            stock.AsyncResult("a").get(timeout=1)

    async def test_a_success_of_ours_is_not_overwritten(self, store: Store, stock: Any) -> None:
        await store.transition([step("a", "SUCCESS", result="1")])
        stock.backend.store_result("a", 2, "SUCCESS")
        assert (await store.get(["a"]))["a"].result == 1


async def _subscribers(app: Any, channel: str) -> int:
    (_, count), *_ = await asyncio.to_thread(app.backend.client.pubsub_numsub, channel)
    return int(count)


class TestWeReadStock:
    async def test_a_life_under_a_stock_worker(self, store: Store, stock: Any) -> None:
        await store.transition(
            [step("a", "PENDING", name="shop.send", args='["***"]', queue="q", owner="ann")]
        )
        backend = stock.backend
        steps = [
            ("STARTED", lambda: backend.store_result("a", {"pid": 7}, "STARTED", request=request())),
            (
                "RETRY",
                lambda: backend.mark_as_retry("a", KeyError("k"), request=request(), traceback="tb"),
            ),
            (
                "STARTED",
                lambda: backend.store_result(
                    "a", {"pid": 8}, "STARTED", request=request(retries=1, hostname="two")
                ),
            ),
            (
                "SUCCESS",
                lambda: backend.mark_as_done("a", {"sum": 3}, request=request(retries=1, hostname="two")),
            ),
        ]
        for state, act in steps:
            act()
            assert (await store.get(["a"]))["a"].state == state
        record = (await store.get(["a"]))["a"]
        assert (record.result, record.traceback, record.error) == ({"sum": 3}, None, None)
        assert (record.name, record.args, record.kwargs, record.owner) == (
            "shop.send",
            ["***"],
            {"n": 1},
            "ann",
        )
        assert (record.queue, record.worker, record.retries) == ("mail", "two", 1)
        assert [(a.retries, a.worker, a.state, a.error) for a in record.attempts] == [
            (0, "celery@stock", "RETRY", "KeyError - k"),
            (1, "two", "SUCCESS", None),
        ]
        assert record.finished_at is not None
        events = [event.data["state"] for event in await store.events("a")]
        assert events == ["PENDING", "STARTED", "RETRY", "STARTED", "SUCCESS"]
        assert not (await store.list(RecordFilter(state="PENDING"))).records
        assert [listed.id for listed in (await store.list(RecordFilter(state="SUCCESS"))).records] == ["a"]

    async def test_a_task_that_we_never_heard_of(self, store: Store, stock: Any) -> None:
        stock.backend.mark_as_failure("b", ValueError("x", 2), request=request(), traceback="tb")
        assert [event.data["state"] for event in await store.events("b")] == ["FAILURE"]
        record = (await store.get(["b"]))["b"]
        assert (record.state, record.error, record.traceback) == ("FAILURE", "ValueError - x, 2", "tb")
        assert (record.name, record.args, record.worker) == ("shop.send", ["x"], "celery@stock")
        assert [listed.id for listed in (await store.list(RecordFilter(state="FAILURE"))).records] == ["b"]
        assert await store.forget(["b"]) == 1
        assert stock.AsyncResult("b").state == "PENDING"

    async def test_what_nobody_has_read_is_found_by_the_clean_up(self, store: Store, stock: Any) -> None:
        await store.transition([step("a", "PENDING", name="shop.send"), step("b", "PENDING")])
        stock.backend.mark_as_done("a", 1, request=request())
        await store.trim()
        assert [listed.id for listed in (await store.list(RecordFilter(state="SUCCESS"))).records] == ["a"]
        assert [listed.id for listed in (await store.list(RecordFilter(state="PENDING"))).records] == ["b"]

    async def test_a_list_shows_what_stock_has_written(self, store: Store, stock: Any) -> None:
        await store.transition([step("a", "PENDING"), step("b", "PENDING")])
        stock.backend.mark_as_done("a", 1, request=request())
        states = {record.id: record.state for record in (await store.list(RecordFilter())).records}
        assert states == {"a": "SUCCESS", "b": "PENDING"}

    async def test_a_stock_success_is_final_for_us(self, store: Store, stock: Any) -> None:
        await store.transition([step("a", "PENDING")])
        stock.backend.mark_as_done("a", 1, request=request())
        await store.transition([step("a", "STARTED", 1), step("a", "FAILURE", 2, result=FAILURE, retries=5)])
        assert stock.AsyncResult("a").get(timeout=1) == 1
        assert (await store.get(["a"]))["a"].state == "SUCCESS"
        assert not await store.request_cancel(["a"])

    async def test_cancelling_what_a_stock_worker_runs(self, store: Store, stock: Any) -> None:
        stock.backend.store_result("a", {"pid": 7}, "STARTED", request=request())
        assert set(await store.request_cancel(["a", "unknown"])) == {"a"}
        assert set(await store.cancelled(["a"])) == {"a"}
        assert (await store.get(["a"]))["a"].cancel_requested_at is not None

    async def test_a_stock_backend_without_extended_results(self, store: Store, redis_url: str) -> None:
        await store.transition([step("a", "PENDING", name="shop.send", queue="q", retries=1)])
        plain = stock_app(redis_url)
        plain.conf.result_extended = False
        plain.backend.mark_as_done("a", 5)
        record = (await store.get(["a"]))["a"]
        assert (record.state, record.result, record.name, record.queue, record.retries) == (
            "SUCCESS",
            5,
            "shop.send",
            "q",
            1,
        )

    async def test_waiters_are_woken(self, store: Store, stock: Any) -> None:
        await store.transition([step("a", "PENDING")])
        async with store.watch("a", until_ready=True) as watch:
            stock.backend.store_result("a", {}, "STARTED", request=request())
            stock.backend.mark_as_done("a", 1, request=request())
            await asyncio.wait_for(watch.changed(), 5)
            assert (await store.get(["a"]))["a"].result == 1

    async def test_what_stock_forgot_is_gone_and_swept_up(
        self, store: Store, stock: Any, client: redis.Redis
    ) -> None:
        await store.transition([step("a", "PENDING"), step("a", "SUCCESS", result="1")])
        await store.transition([step("b", "PENDING")])
        await store.append_events([EventDraft("a", "value", "1", NOW)])
        stock.AsyncResult("a").forget()
        assert set(await store.get(["a", "b"])) == {"b"}
        assert not await store.events("a")
        assert [listed.id for listed in (await store.list(RecordFilter())).records] == ["b"]
        await store.transition([step("a", "PENDING", 9, name="again")])
        assert (await store.get(["a"]))["a"].attempts == []
        stock.AsyncResult("a").forget()
        await store.transition([Transition(task_id="c", state="SUCCESS", at=time.time())])
        stock.AsyncResult("c").forget()
        await store.trim()
        assert not [key for key in client.scan_iter() if key.endswith(b":c")]

    @pytest.mark.parametrize("settings", [{"result_serializer": "pickle"}, {"result_compression": "gzip"}])
    async def test_results_in_other_formats(
        self, store: Store, redis_url: str, settings: dict[str, Any]
    ) -> None:
        app = stock_app(redis_url, accept_content=["json", "pickle"], **settings)
        await store.transition([step("a", "PENDING", name="shop.send")])
        app.backend.mark_as_done("a", {"n": 1}, request=request())
        app.backend.mark_as_failure("b", ValueError("x"), request=request())
        records = await store.get(["a", "b"])
        assert (records["a"].state, records["b"].state) == ("SUCCESS", "FAILURE")
        if "result_compression" in settings:
            assert (records["a"].result, records["b"].error) == ({"n": 1}, "ValueError - x")
        else:
            assert "bytes that are not JSON" in records["a"].result

    async def test_a_prefix(self, redis_url: str, client: redis.Redis) -> None:
        options = {"global_keyprefix": "shop"}
        store = store_for(redis_url, options=options)
        await store.open()
        app = stock_app(redis_url, result_backend_transport_options=options)
        await store.transition([step("a", "SUCCESS", result="1")])
        assert app.AsyncResult("a").get(timeout=1) == 1
        app.backend.mark_as_done("b", 2, request=request())
        assert (await store.get(["b"]))["b"].result == 2
        assert {key.partition(b"_")[0] for key in client.scan_iter()} == {b"shop"}
        await store.close()


@pytest.fixture
def logging_as_it_was() -> Iterator[None]:
    """A worker in this process would set the level of the root logger, for every test that comes after it."""

    def leave_alone(**_: Any) -> None: ...

    setup_logging.connect(leave_alone)
    yield
    setup_logging.disconnect(leave_alone)


class TestOurBackend:
    def test_the_url_names_ours_for_us_and_celerys_for_others(self, ours: Any, stock: Any) -> None:
        assert isinstance(ours.backend, RedisBackend)
        assert type(stock.backend) is StockBackend

    def test_a_life(self, ours: Any, stock: Any) -> None:
        backend = ours.backend
        for app in (ours, stock):
            result = app.AsyncResult("a")
            assert (result.state, result.result, result.ready()) == ("PENDING", None, False)
        backend.store_result("a", {"done": 3}, "PROGRESS", request=request())
        for app in (ours, stock):
            assert (app.AsyncResult("a").state, app.AsyncResult("a").info) == ("PROGRESS", {"done": 3})
        backend.mark_as_done("a", [1, {"x": None}], request=request())
        for app in (ours, stock):
            result = app.AsyncResult("a")
            assert result.get(timeout=1) == [1, {"x": None}]
            assert (result.name, result.args, result.worker) == ("shop.send", ["x"], "celery@stock")
        backend.mark_as_failure("a", ValueError("late"))
        assert ours.AsyncResult("a").get(timeout=1) == [1, {"x": None}]
        backend.mark_as_failure("b", ValueError("no", 2), traceback="tb")
        with pytest.raises(ValueError) as raised:
            stock.AsyncResult("b").get(timeout=1)
        assert raised.value.args == ("no", 2)

    def test_get_waits_promptly(self, ours: Any) -> None:
        ended: list[float] = []

        def end() -> None:
            ended.append(time.monotonic())
            ours.backend.mark_as_done("a", 1)

        ours.backend.mark_as_done("warm", 1)
        timer = threading.Timer(0.15, end)
        timer.start()
        assert ours.AsyncResult("a").get(timeout=5) == 1
        assert time.monotonic() - ended[0] < 0.3
        timer.join()
        with pytest.raises(celery.exceptions.TimeoutError):
            ours.AsyncResult("never").get(timeout=0.1)

    async def test_the_asyncio_store_reads_the_same_records(self, ours: Any, store: Store) -> None:
        async with store.watch("a", until_ready=True) as watch:
            facts = request(parent_id="p", group="g", root_id="r")
            await asyncio.to_thread(lambda: ours.backend.mark_as_done("a", 1, request=facts))
            await asyncio.wait_for(watch.changed(), 5)
        record = (await store.get(["a"]))["a"]
        assert (record.result, record.parent_id, record.group_id, record.root_id) == (1, "p", "g", "r")

    async def test_forget_cancel_and_clean_up(self, ours: Any, store: Store, client: redis.Redis) -> None:
        await store.transition([step("a", "PENDING"), step("b", "STARTED"), step("c", "SUCCESS", -1e6)])

        def act() -> None:
            assert set(ours.backend.request_cancel(["a", "b", "c"], running=False)) == {"a"}
            assert set(ours.backend.request_cancel(["b"])) == {"b"}
            old = Transition(task_id="old", state="SUCCESS", at=time.time() - 90_000)
            ours.backend.record_published([old, step("d", "PENDING")])
            ours.AsyncResult("d").forget()
            ours.backend.cleanup()

        await asyncio.to_thread(act)
        assert set(await store.cancelled(["a", "b", "c"])) == {"a", "b"}
        assert not await store.get(["d", "old"])
        assert not client.exists("celeriac:task:d", "celeriac:task:old")

    def test_settings_that_do_not_fit(self, redis_url: str) -> None:
        with pytest.raises(ConfigurationError, match="result_serializer"):
            our_app(redis_url, result_serializer="pickle").backend  # noqa: B018

    @pytest.mark.usefixtures("logging_as_it_was")
    def test_canvas_in_a_stock_worker(self, ours: Any, redis_url: str, client: redis.Redis) -> None:
        app = celery.Celery("worker", broker="memory://", backend=redis_url, set_as_current=False)
        app.conf.broker_transport_options = {"polling_interval": 0.01}
        app.loader.override_backends = {"redis": "celeriac.backends.redis:RedisBackend"}

        @app.task(name="redis-add")
        def add(x: int, y: int) -> int:
            return x + y

        @app.task(name="redis-total")
        def total(numbers: list[int]) -> int:
            return sum(numbers)

        @app.task(name="redis-stumble", bind=True, max_retries=1)
        def stumble(self: Any) -> int:
            if self.request.retries == 0:
                raise self.retry(countdown=0)
            return int(self.request.retries)

        with start_worker(app, pool="threads", concurrency=2, perform_ping_check=False, shutdown_timeout=20):
            assert celery.chord(add.s(n, n) for n in range(4))(total.s()).get(timeout=20) == 12
            assert celery.chain(add.s(1, 2), add.s(3))().get(timeout=20) == 6
            group = celery.group(add.s(n, 1) for n in range(3))()
            assert group.get(timeout=20) == [1, 2, 3]
            group.save()
            assert app.GroupResult.restore(group.id).get(timeout=20) == [1, 2, 3]
            result = stumble.delay()
            assert result.get(timeout=20) == 1
        assert isinstance(app.backend, RedisBackend)


class TestTrouble:
    def test_a_server_that_is_gone_is_told_soon(self, redis_server: RedisServer) -> None:
        app = our_app(redis_server.url)
        app.backend.record_published([step("a", "PENDING")])
        redis_server.stop()
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            app.backend.record_published([step("b", "PENDING")])
        with pytest.raises(StoreUnavailable):
            app.backend.request_cancel(["a"])
        app.backend.on_task_call(None, "b")
        assert time.monotonic() - begun < 3
        redis_server.start()
        app.backend.record_published([step("c", "PENDING")])

    def test_a_task_is_published_although_its_record_is_not(self, redis_server: RedisServer) -> None:
        app = our_app(redis_server.url)

        @app.task(name="gone")
        def gone() -> None: ...

        redis_server.stop()
        begun = time.monotonic()
        assert gone.delay().id
        assert time.monotonic() - begun < 3

    def test_a_server_that_says_nothing(self, redis_server: RedisServer) -> None:
        app = our_app(redis_server.url)
        app.backend.record_published([step("a", "PENDING")])
        redis_server.pause()
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable, match="does not answer"):
            app.backend.record_published([step("b", "PENDING")])
        assert time.monotonic() - begun < 8
        redis_server.resume()
