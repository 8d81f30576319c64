"""Celery's own database backend and ours on one file, and a stock app on our backends."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import celery
import pytest
from celery.backends.database import DatabaseBackend
from celery.contrib.testing.worker import start_worker
from celery.signals import setup_logging

from celeriac.backends.memory import MemoryBackend
from celeriac.backends.sql import SQLBackend
from celeriac.errors import ConfigurationError, StoreUnavailable
from celeriac.stores.base import Store
from celeriac.stores.records import RecordFilter, Transition
from celeriac.stores.urls import store_for

FAILURE = '{"exc_type": "ValueError", "exc_message": ["no"], "exc_module": "builtins"}'
NOW = 1_790_000_000.25


@pytest.fixture
def logging_as_it_was() -> Iterator[None]:
    """A worker in this process would set the level of the root logger, for every test that comes after it."""

    def leave_alone(**_: Any) -> None: ...

    setup_logging.connect(leave_alone)
    yield
    setup_logging.disconnect(leave_alone)


def stock_app(backend: str, **settings: Any) -> Any:
    app = celery.Celery("stock", broker="memory://", backend=backend, set_as_current=False)
    app.conf.update(result_extended=True, broker_transport_options={"polling_interval": 0.01}, **settings)
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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "celery.db"


@pytest.fixture
def stock(path: Path) -> Any:
    return stock_app(f"db+sqlite:///{path}")


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    made = store_for(f"db+sqlite:///{path}")
    await made.open()
    yield made
    await made.close()


def step(task_id: str, state: str, seconds: float = 0, **facts: Any) -> Transition:
    return Transition(task_id=task_id, state=state, at=NOW + seconds, **facts)


class TestStockReadsOurs:
    async def test_every_state(self, store: Store, stock: Any) -> None:
        facts = {"name": "shop.send", "args": '["ü"]', "kwargs": '{"n": 1}', "queue": "mail", "retries": 2}
        await store.transition(
            [
                step(state, "PENDING", **facts)
                for state in ("PENDING", "STARTED", "RETRY", "SUCCESS", "FAILURE")
            ]
        )
        await store.transition(
            [
                step("STARTED", "STARTED", 1, worker="w@1"),
                step("RETRY", "RETRY", 1, result=FAILURE, traceback="Traceback"),
                step("SUCCESS", "SUCCESS", 1, result='{"n": [1, null]}', children='[[["c", null], null]]'),
                step("FAILURE", "FAILURE", 1, result=FAILURE, traceback="Traceback"),
            ]
        )
        for state in ("PENDING", "STARTED", "RETRY", "SUCCESS", "FAILURE"):
            result = stock.AsyncResult(state)
            assert result.state == state
            assert (result.name, result.args, result.kwargs) == ("shop.send", ["ü"], {"n": 1})
            assert (result.queue, result.retries) == ("mail", 2)
        assert stock.AsyncResult("STARTED").worker == "w@1"
        assert repr(stock.AsyncResult("RETRY").result) == "ValueError('no')"
        assert stock.AsyncResult("RETRY").traceback == "Traceback"
        success = stock.AsyncResult("SUCCESS")
        assert success.get(timeout=1) == {"n": [1, None]}
        assert success.date_done.isoformat() == "2026-09-21T14:13:21.250000"
        assert [child.id for child in success.children] == ["c"]
        with pytest.raises(ValueError, match="no"):
            stock.AsyncResult("FAILURE").get(timeout=1)

    async def test_a_cancelled_task(self, store: Store, stock: Any) -> None:
        await store.transition([step("a", "PENDING")])
        await store.request_cancel(["a"])
        with pytest.raises(celery.exceptions.TaskRevokedError, match="cancelled"):
            stock.AsyncResult("a").get(timeout=1)

    async def test_a_success_of_ours_is_not_overwritten(self, store: Store, stock: Any) -> None:
        await store.transition([step("a", "SUCCESS", result="1")])
        stock.backend.store_result("a", 2, "SUCCESS")
        assert (await store.get(["a"]))["a"].result == 1


class TestWeReadStock:
    async def test_a_life_under_a_stock_worker(self, store: Store, stock: Any) -> None:
        await store.transition(
            [step("a", "PENDING", name="shop.send", args='["***"]', queue="q", owner="ann")]
        )
        backend = stock.backend
        before = time.time()
        backend.store_result("a", {"pid": 7}, "STARTED", request=request())
        backend.mark_as_retry("a", KeyError("k"), request=request(), traceback="tb")
        backend.store_result("a", {"pid": 8}, "STARTED", request=request(retries=1, hostname="celery@two"))
        backend.mark_as_done("a", {"sum": 3}, request=request(retries=1, hostname="celery@two"))
        record = (await store.get(["a"]))["a"]
        assert (record.state, record.result, record.traceback) == ("SUCCESS", {"sum": 3}, None)
        assert (record.name, record.args, record.kwargs, record.owner) == (
            "shop.send",
            ["***"],
            {"n": 1},
            "ann",
        )
        assert (record.queue, record.worker, record.retries) == ("mail", "celery@two", 1)
        assert [(a.retries, a.worker, a.state, a.error) for a in record.attempts] == [
            (0, "celery@stock", "RETRY", "KeyError - k"),
            (1, "celery@two", "SUCCESS", None),
        ]
        assert record.started_at is not None
        assert record.finished_at is not None
        assert (
            before - 0.01
            <= record.started_at.timestamp()
            <= record.finished_at.timestamp()
            <= time.time() + 0.01
        )
        events = await store.events("a")
        assert [event.data["state"] for event in events] == [
            "PENDING",
            "STARTED",
            "RETRY",
            "STARTED",
            "SUCCESS",
        ]
        assert events[2].data["error"] == "KeyError - k"

    async def test_a_task_that_we_never_heard_of(self, store: Store, stock: Any) -> None:
        stock.backend.mark_as_failure("b", ValueError("x", 2), request=request(), traceback="tb")
        record = (await store.get(["b"]))["b"]
        assert (record.state, record.error, record.traceback) == ("FAILURE", "ValueError - x, 2", "tb")
        assert (record.name, record.args, record.worker) == ("shop.send", ["x"], "celery@stock")
        assert [event.data["state"] for event in await store.events("b")] == ["FAILURE"]
        assert [listed.id for listed in (await store.list(RecordFilter(state="FAILURE"))).records] == ["b"]

    async def test_a_writer_without_request_blanks_nothing(self, store: Store, stock: Any) -> None:
        await store.transition(
            [
                step("a", "PENDING", name="shop.send", args="[1]", queue="q", retries=1),
                step("a", "STARTED", worker="w"),
            ]
        )
        stock.backend.mark_as_failure("a", RuntimeError("lost"))
        record = (await store.get(["a"]))["a"]
        assert (record.name, record.args, record.queue) == ("shop.send", [1], "q")
        assert (record.worker, record.retries) == ("w", 1)
        assert record.attempts[-1].error == "RuntimeError - lost"

    async def test_a_stock_backend_without_extended_results(self, store: Store, path: Path) -> None:
        await store.transition([step("a", "PENDING", name="shop.send")])
        plain = stock_app(f"db+sqlite:///{path}")
        plain.conf.result_extended = False
        plain.backend.mark_as_done("a", 5)
        record = (await store.get(["a"]))["a"]
        assert (record.state, record.result, record.name) == ("SUCCESS", 5, "shop.send")

    async def test_waiters_are_woken(self, store: Store, stock: Any) -> None:
        await store.transition([step("a", "PENDING")])
        async with store.watch("a", until_ready=True) as watch:
            stock.backend.store_result("a", {}, "STARTED", request=request())
            stock.backend.mark_as_done("a", 1, request=request())
            await watch.changed()
            assert (await store.get(["a"]))["a"].result == 1

    async def test_what_stock_forgot_is_gone_and_swept_up(self, store: Store, stock: Any, path: Path) -> None:
        await store.transition([step("a", "PENDING"), step("a", "SUCCESS", result="1")])
        await store.transition([step("b", "PENDING")])
        stock.backend.forget("a")
        assert set(await store.get(["a", "b"])) == {"b"}
        assert not await store.events("a")
        await store.trim()
        with sqlite3.connect(path) as connection:
            assert connection.execute("SELECT count(*) FROM celeriac_event").fetchone() == (1,)

    async def test_a_file_that_stock_made_before_us(self, path: Path, stock: Any) -> None:
        stock.backend.mark_as_done("old", 1, request=request())
        store = store_for(f"sqlite:///{path}")
        await store.open()
        record = (await store.get(["old"]))["old"]
        assert (record.state, record.result, record.name) == ("SUCCESS", 1, "shop.send")
        assert record.finished_at is not None
        await store.transition([step("new", "PENDING")])
        stock.backend.mark_as_done("newer", 2, request=request())
        assert [event.data["state"] for event in await store.events("newer")] == ["SUCCESS"]
        assert [listed.id for listed in (await store.list(RecordFilter())).records] == ["newer", "new", "old"]
        await store.close()

    async def test_results_that_are_not_json(self, store: Store, path: Path) -> None:
        pickling = stock_app(f"db+sqlite:///{path}", result_serializer="pickle", accept_content=["pickle"])
        pickling.backend.mark_as_done("a", {1, 2}, request=request())
        pickling.backend.mark_as_failure("b", ValueError("x"), request=request())
        records = await store.get(["a", "b"])
        assert (records["a"].state, records["b"].state) == ("SUCCESS", "FAILURE")
        assert "characters that are not JSON" in records["a"].result
        assert records["b"].error is None


@pytest.fixture(params=["sqlite", "memory"])
def app(request: pytest.FixtureRequest, path: Path) -> Iterator[Any]:
    backend = f"sqlite:///{path}" if request.param == "sqlite" else f"memory://{path}"
    made = stock_app(backend, result_chord_retry_interval=0.05)
    yield made
    made.close()


class TestStockAppOnOurBackend:
    def test_the_url_names_the_class(self, app: Any) -> None:
        assert type(app.backend) in (SQLBackend, MemoryBackend)
        assert isinstance(app.backend, DatabaseBackend) == isinstance(app.backend, SQLBackend)

    def test_a_life(self, app: Any) -> None:
        result = app.AsyncResult("a")
        assert (result.state, result.result, result.ready()) == ("PENDING", None, False)
        assert not app.backend.task_result_exists("a")
        app.backend.store_result("a", {"pid": 1}, "STARTED", request=request())
        assert (result.state, result.info) == ("STARTED", {"pid": 1})
        app.backend.store_result("a", {"done": 3}, "PROGRESS", request=request())
        assert (result.state, result.info) == ("PROGRESS", {"done": 3})
        app.backend.mark_as_done("a", [1, {"x": None}], request=request())
        assert result.get(timeout=1) == [1, {"x": None}]
        assert (result.name, result.args, result.kwargs, result.worker) == (
            "shop.send",
            ["x"],
            {"n": 1},
            "celery@stock",
        )
        assert (result.queue, result.retries) == ("mail", 0)
        assert (
            abs(result.date_done.replace(tzinfo=None).timestamp() - time.time() - time.timezone) < 3600 * 15
        )
        assert app.backend.task_result_exists("a")

    def test_success_is_final_and_failure_raises(self, app: Any) -> None:
        app.backend.mark_as_done("a", 1)
        app.backend.mark_as_failure("a", ValueError("late"))
        assert app.AsyncResult("a").get(timeout=1) == 1
        app.backend.mark_as_failure("b", ValueError("no", 2), traceback="tb")
        with pytest.raises(ValueError) as raised:
            app.AsyncResult("b").get(timeout=1)
        assert raised.value.args == ("no", 2)
        assert app.AsyncResult("b").traceback == "tb"
        app.backend.mark_as_revoked("c", "terminated")
        with pytest.raises(celery.exceptions.TaskRevokedError):
            app.AsyncResult("c").get(timeout=1)

    def test_get_waits_promptly(self, app: Any) -> None:
        ended: list[float] = []

        def end() -> None:
            ended.append(time.monotonic())
            app.backend.mark_as_done("a", 1)

        app.AsyncResult("a").state  # noqa: B018 - opens the database, which is not what is measured
        timer = threading.Timer(0.15, end)
        timer.start()
        assert app.AsyncResult("a").get(timeout=5) == 1
        assert time.monotonic() - ended[0] < 0.1
        timer.join()

    def test_get_times_out(self, app: Any) -> None:
        begun = time.monotonic()
        with pytest.raises(celery.exceptions.TimeoutError):
            app.AsyncResult("a").get(timeout=0.1)
        assert time.monotonic() - begun < 1
        with pytest.raises(celery.exceptions.TimeoutError):
            app.AsyncResult("a").get(timeout=0)

    def test_forget(self, app: Any) -> None:
        app.backend.mark_as_done("a", 1)
        app.AsyncResult("a").forget()
        assert app.AsyncResult("a").state == "PENDING"

    def test_groups(self, app: Any) -> None:
        group = app.GroupResult("g", [app.AsyncResult("a"), app.AsyncResult("b")])
        group.save()
        group.save()
        restored = app.GroupResult.restore("g")
        app.backend.mark_as_done("a", 1)
        app.backend.mark_as_done("b", 2)
        assert restored.get(timeout=1) == [1, 2]
        restored.delete()
        assert app.GroupResult.restore("g") is None

    def test_cleanup(self, app: Any) -> None:
        app.conf.result_expires = 60
        old = Transition(task_id="old", state="SUCCESS", at=time.time() - 61, result="1")
        app.backend.record_published(
            [old, Transition(task_id="new", state="SUCCESS", at=time.time(), result="1")]
        )
        app.backend.cleanup()
        assert [app.AsyncResult(id_).state for id_ in ("old", "new")] == ["PENDING", "SUCCESS"]

    def test_values_of_python_come_back(self, app: Any) -> None:
        from datetime import date
        from decimal import Decimal
        from uuid import UUID

        value = {"day": date(2026, 1, 2), "id": UUID(int=7), "price": Decimal("1.50")}
        app.backend.mark_as_done("a", value)
        assert app.AsyncResult("a").get(timeout=1) == value

    def test_cancelling(self, app: Any) -> None:
        app.backend.record_published(
            [
                Transition(task_id=id_, state=state, at=NOW)
                for id_, state in (("waits", "PENDING"), ("runs", "STARTED"))
            ]
        )
        assert set(app.backend.request_cancel(["waits", "runs", "unknown"], running=False)) == {"waits"}
        assert [app.AsyncResult(id_).state for id_ in ("waits", "runs")] == ["REVOKED", "STARTED"]
        assert set(app.backend.request_cancel(["waits", "runs"])) == {"runs"}

    def test_canvas_with_a_stock_worker(self, app: Any, logging_as_it_was: None) -> None:
        @app.task(shared=False)
        def add(x: int, y: int) -> int:
            return x + y

        @app.task(shared=False)
        def total(numbers: list[int]) -> int:
            return sum(numbers)

        @app.task(bind=True, max_retries=1, shared=False)
        def stumble(self: Any) -> int:
            if self.request.retries == 0:
                raise self.retry(countdown=0)
            self.update_state(state="HALF", meta={"n": 1})
            return 1

        app.conf.task_track_started = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with start_worker(
                app, pool="threads", concurrency=2, perform_ping_check=False, shutdown_timeout=20
            ):
                chord = celery.chord(add.s(n, n) for n in range(4))(total.s())
                assert chord.get(timeout=20) == 12
                assert celery.chain(add.s(1, 2), add.s(3))().get(timeout=20) == 6
                result = stumble.delay()
                assert result.get(timeout=20) == 1
        row = app.backend._row(result.id)
        assert row.name.endswith("stumble")
        assert row.attempts.count('"state"') == 2

    async def test_the_asyncio_store_reads_the_same_records(self, app: Any) -> None:
        store = store_for(app.conf.result_backend)
        await store.open()
        async with store.watch("a", until_ready=True) as watch:
            facts = request(parent_id="p", group="g", root_id="r")
            await asyncio.to_thread(app.backend.mark_as_done, "a", 1, request=facts)
            await watch.changed()
        record = (await store.get(["a"]))["a"]
        assert (record.result, record.parent_id, record.group_id, record.root_id) == (1, "p", "g", "r")
        await store.close()


class TestTrouble:
    def test_a_folder_that_is_missing(self, tmp_path: Path) -> None:
        app = stock_app(f"sqlite:///{tmp_path}/missing/celery.db")
        with pytest.raises(StoreUnavailable, match="cannot be opened"):
            app.AsyncResult("a").state  # noqa: B018
        with pytest.raises(StoreUnavailable, match="cannot be opened"):
            app.backend.mark_as_done("a", 1)

    def test_settings_that_do_not_fit(self, path: Path) -> None:
        with pytest.raises(ConfigurationError, match="result_serializer"):
            stock_app(f"sqlite:///{path}", result_serializer="pickle").backend  # noqa: B018
        with pytest.raises(ConfigurationError, match="database_table_names"):
            stock_app(f"sqlite:///{path}", database_table_names={"task": "mine"}).backend  # noqa: B018
