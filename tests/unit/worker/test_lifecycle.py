"""Receivers and handlers around a task: where they run, in what order, and what becomes of what they raise."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any
from uuid import uuid4

import pytest
from celery import current_task, signals
from celery.app.task import Context
from celery.exceptions import Ignore, Reject
from celery.worker.request import Request

from celeriac import Celery
from celeriac.compat import is_always_eager
from celeriac.worker import announce
from celeriac.worker.embedded import run_embedded


@pytest.fixture
def celery() -> Celery:
    url = f"memory://{uuid4()}"
    app = Celery("lifecycle", broker=url, backend=url, set_as_current=False)
    app.conf.celeriac_shutdown_grace = 0.5
    return app


@pytest.fixture(autouse=True)
def _forget_warnings() -> None:
    announce._warned.clear()


@pytest.fixture
def connect() -> Iterator[Callable[[Any, Callable[..., Any]], None]]:
    """Connects a receiver for the length of a test."""
    connected: list[tuple[Any, Any]] = []

    def connect(signal: Any, receiver: Callable[..., Any]) -> None:
        signal.connect(receiver, weak=False)
        connected.append((signal, receiver))

    yield connect
    for signal, receiver in connected:
        signal.disconnect(receiver)


@asynccontextmanager
async def working(app: Celery) -> AsyncIterator[None]:
    async with app, run_embedded(app, concurrency=10):
        yield


async def ended(app: Celery, task: Any, *args: Any) -> str:
    """The state that the task ends in, once its message is settled."""
    settled = asyncio.Event()
    handle = await task.enqueue(*args)

    async def on_postrun(task_id: str, **_: Any) -> None:
        if task_id == handle.id:
            settled.set()

    signals.task_postrun.connect(on_postrun)
    try:
        async with asyncio.timeout(5):
            await settled.wait()
            state: str = await handle.state()
            return state
    finally:
        signals.task_postrun.disconnect(on_postrun)


# -- one thread --------------------------------------------------------------------------------------------------


async def test_receivers_and_handlers_share_the_thread_of_a_function(celery: Celery, connect: Any) -> None:
    """What Django's ``close_old_connections`` and SQLAlchemy's ``scoped_session.remove`` count on."""
    kept = threading.local()
    seen: dict[str, list[str | None]] = {}

    def on_prerun(task_id: str, **_: Any) -> None:
        kept.session = task_id
        seen[task_id] = ["prerun"]

    def look(task_id: str) -> None:
        seen[task_id].append(getattr(kept, "session", None))

    def on_postrun(task_id: str, **_: Any) -> None:
        look(task_id)
        del kept.session

    class Base(celery.Task):  # type: ignore[misc,name-defined]
        def before_start(self, task_id: str, *_: Any) -> None:
            look(task_id)

        def on_success(self, retval: Any, task_id: str, *_: Any) -> None:
            look(task_id)

        def after_return(self, status: str, retval: Any, task_id: str, *_: Any) -> None:
            look(task_id)

    connect(signals.task_prerun, on_prerun)
    connect(signals.task_postrun, on_postrun)

    @celery.task(base=Base, bind=True)
    def function(self: Any) -> None:
        look(self.request.id)
        time.sleep(0.002)

    async with working(celery):
        handles = [await function.enqueue() for _ in range(30)]
        for handle in handles:
            await handle.result(5)
    for handle in handles:
        assert seen[handle.id] == ["prerun", *[handle.id] * 5]


async def test_a_functions_context_is_that_of_its_receivers(celery: Celery, connect: Any) -> None:
    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
    at_the_end: list[str] = []
    connect(signals.task_prerun, lambda **_: tenant.set("acme"))
    connect(signals.task_postrun, lambda **_: at_the_end.append(tenant.get()))

    @celery.task
    def function() -> str:
        return tenant.get()

    @celery.task
    async def coroutine() -> str:
        return tenant.get()

    async with working(celery):
        for task in (function, coroutine):
            handle = await task.enqueue()
            assert await handle.result(5) == "acme"
    assert at_the_end == ["acme", "acme"]


async def test_threads_are_given_back_whatever_happens_in_them(celery: Celery, connect: Any) -> None:
    celery.conf.celeriac_threads = 2

    def raises(**_: Any) -> None:
        raise RuntimeError("a receiver")

    for signal in (signals.task_prerun, signals.task_success, signals.task_postrun):
        connect(signal, raises)

    @celery.task
    def fails() -> None:
        raise ValueError("failed")

    @celery.task
    def succeeds() -> int:
        return 1

    async with working(celery):
        for _ in range(6):
            with pytest.raises(ValueError, match="failed"):
                await (await fails.enqueue()).result(5)
            assert await (await succeeds.enqueue()).result(5) == 1


async def test_a_stopped_functions_handlers_run_in_another_thread(celery: Celery, connect: Any) -> None:
    celery.conf.celeriac_threads = 1
    release, failed = threading.Event(), threading.Event()
    connect(signals.task_failure, lambda **_: failed.set())

    @celery.task(time_limit=0.1)
    def stuck() -> None:
        release.wait(5)

    @celery.task
    def next_one() -> str:
        return "runs"

    async with working(celery):
        handle = await stuck.enqueue()
        with pytest.raises(Exception, match=r"0\.1"):
            await handle.result(5)
        assert await asyncio.to_thread(failed.wait, 5)
        assert await (await next_one.enqueue()).result(5) == "runs"
        release.set()
        assert await (await next_one.enqueue()).result(5) == "runs"


async def test_what_a_function_raises_is_not_lost_on_the_way_from_its_thread(celery: Celery) -> None:
    @celery.task
    def stops() -> None:
        raise StopIteration("no more")

    async with working(celery):
        handle = await stops.enqueue()
        with pytest.raises(Exception, match="StopIteration"):
            await handle.result(5)


# -- coroutine functions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_receivers_and_handlers_may_be_coroutine_functions(
    celery: Celery, connect: Any, kind: str
) -> None:
    calls: list[tuple[str, bool, str]] = []
    loop = asyncio.get_running_loop()

    async def note(name: str) -> None:
        await asyncio.sleep(0)
        calls.append((name, asyncio.get_running_loop() is loop, current_task.name))

    class Base(celery.Task):  # type: ignore[misc,name-defined]
        async def before_start(self, *_: Any) -> None:
            await note("before_start")

        async def on_success(self, *_: Any) -> None:
            await note("on_success")

        async def after_return(self, *_: Any) -> None:
            await note("after_return")

    for signal in (signals.task_prerun, signals.task_success, signals.task_postrun):

        async def receiver(signal: Any, **_: Any) -> None:
            await note(signal.name)

        connect(signal, receiver)

    def function() -> int:
        return 1

    async def coroutine() -> int:
        return 1

    task = celery.task(base=Base, name="task")(function if kind == "def" else coroutine)
    async with working(celery):
        assert await ended(celery, task) == "SUCCESS"
    assert [name for name, *_ in calls] == [
        "task_prerun",
        "before_start",
        "on_success",
        "task_success",
        "after_return",
        "task_postrun",
    ]
    assert all(on_loop and task_name == "task" for _, on_loop, task_name in calls)


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_a_handler_that_fails_changes_nothing_and_is_announced(
    celery: Celery, connect: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    internal: list[dict[str, Any]] = []
    connect(signals.task_internal_error, lambda **named: internal.append(named))

    class Base(celery.Task):  # type: ignore[misc,name-defined]
        def on_failure(self, *_: Any) -> None:
            raise RuntimeError("the handler")

        def after_return(self, *_: Any) -> None:
            raise RuntimeError("the other handler")

    def function() -> None:
        raise ValueError("the task")

    async def coroutine() -> None:
        function()

    task = celery.task(base=Base, name="task")(function if kind == "def" else coroutine)
    async with working(celery):
        handle = await task.enqueue()
        with pytest.raises(ValueError, match="the task"):
            await handle.result(5)
    assert "on_failure handler raised: RuntimeError('the handler')" in caplog.text
    assert "after_return handler raised" in caplog.text
    (said,) = internal
    assert (said["task_id"], said["sender"].name, str(said["exception"])) == (
        handle.id,
        "task",
        "the handler",
    )
    assert said["request"]["id"] == handle.id
    assert said["einfo"].traceback


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_what_before_start_raises_the_task_has_raised(celery: Celery, kind: str) -> None:
    ran: list[str] = []

    class Base(celery.Task):  # type: ignore[misc,name-defined]
        def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
            raise {
                "fail": ValueError("not ready"),
                "ignore": Ignore(),
                "reject": Reject("no", requeue=False),
            }[args[0]]

    def function(how: str) -> None:
        ran.append(how)

    async def coroutine(how: str) -> None:
        ran.append(how)

    task = celery.task(base=Base, name="task")(function if kind == "def" else coroutine)
    async with working(celery):
        assert await ended(celery, task, "fail") == "FAILURE"
        assert await ended(celery, task, "ignore") == "STARTED"
        assert await ended(celery, task, "reject") == "FAILURE"
    assert not ran


# -- the loop ----------------------------------------------------------------------------------------------------


def sluggish(**_: Any) -> None:
    deadline = time.perf_counter() + announce.STALL * 1.5
    while time.perf_counter() < deadline:
        pass


async def test_a_receiver_that_stalls_the_loop_is_named_once(
    celery: Celery, connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    connect(signals.task_prerun, sluggish)

    @celery.task
    async def coroutine() -> None:
        pass

    @celery.task
    def function() -> None:
        pass

    async with working(celery):
        await (await function.enqueue()).result(5)
        assert "event loop" not in caplog.text  # it has a thread, and may take its time
        for _ in range(2):
            await (await coroutine.enqueue()).result(5)
    warnings = [record.getMessage() for record in caplog.records if "event loop" in record.getMessage()]
    assert len(warnings) == 1
    assert f"{__name__}.sluggish, receiver of task_prerun" in warnings[0]


async def test_a_handler_that_stalls_the_loop_is_named(
    celery: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    class Base(celery.Task):  # type: ignore[misc,name-defined]
        def on_success(self, *_: Any) -> None:
            sluggish()

    @celery.task(base=Base)
    async def coroutine() -> None:
        pass

    async with working(celery):
        assert await ended(celery, coroutine) == "SUCCESS"
    assert "Base.on_success, a handler, kept the event loop waiting" in caplog.text


async def test_a_receiver_that_is_tried_again_is_called_by_its_own_name(
    celery: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    signals.task_prerun.connect(sluggish, retry=True)
    try:

        @celery.task
        async def coroutine() -> None:
            pass

        async with working(celery):
            await (await coroutine.enqueue()).result(5)
    finally:
        signals.task_prerun.disconnect(sluggish, dispatch_uid=id(sluggish))
        signals.task_prerun.receivers.clear()
    assert "test_lifecycle.sluggish" in caplog.text


async def test_a_receiver_for_one_task_hears_of_that_alone(celery: Celery) -> None:
    heard: list[str] = []

    @celery.task
    async def one() -> None:
        pass

    @celery.task
    async def other() -> None:
        pass

    @signals.task_success.connect(sender=one)
    def on_success(sender: Any, **_: Any) -> None:
        heard.append(sender.name)

    async with working(celery):
        await (await other.enqueue()).result(5)
        assert await ended(celery, one) == "SUCCESS"
    assert heard == [one.name]


async def test_a_received_request_has_the_attributes_of_celerys(celery: Celery, connect: Any) -> None:
    told: list[dict[str, Any]] = []
    missing: list[str] = []
    # Those of a request that is under way in a pool, and what the worker's steps use to settle the message.
    inner = {"on_ack", "on_reject", "execute", "execute_using_pool", "reject", "acknowledge", "send_event"}
    inner |= {"maybe_expire", "revoked"}  # it is neither: receivers do not hear of those

    def on_received(request: Any, **_: Any) -> None:
        names = {name for name in vars(Request) if not name.startswith(("_", "on_"))} - inner
        missing.extend(name for name in names if not hasattr(request, name))
        told.append({"name": request.name, "type": request.type, "id": request.id, "info": request.info()})
        assert request.message.headers["id"] == request.request_dict["id"] == request.task_id
        assert request.body
        assert request.correlation_id == request.root_id == request.id
        assert request.task.name == request.type

    connect(signals.task_received, on_received)

    @celery.task(name="task")
    async def task() -> None:
        pass

    async with working(celery):
        handle = await task.using(shadow="another").enqueue()
        await handle.result(5)
    assert not missing
    assert told[0]["name"] == "another"
    assert (told[0]["type"], told[0]["id"], told[0]["info"]["id"]) == ("task", handle.id, handle.id)


# -- what is logged ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_what_a_task_throws_is_logged_as_expected(
    celery: Celery, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    def function(expected: bool) -> None:
        raise KeyError("expected") if expected else ValueError("not so")

    async def coroutine(expected: bool) -> None:
        function(expected)

    task = celery.task(throws=(KeyError,), name="task")(function if kind == "def" else coroutine)
    async with working(celery):
        with caplog.at_level(logging.INFO):
            await ended(celery, task, True)
            await ended(celery, task, False)
            assert await celery.queue_size("celery") == 0
    ours = {
        record.getMessage().split("] ")[1]: record
        for record in caplog.records
        if "raised" in record.msg or "(description)" in str(record.msg)
    }
    expected, unexpected = (
        ours["raised expected: KeyError('expected')"],
        ours["raised unexpected: ValueError('not so')"],
    )
    assert (expected.levelname, expected.exc_info, expected.name) == ("INFO", None, "celery.app.trace")
    assert (unexpected.levelname, bool(unexpected.exc_info)) == ("ERROR", True)
    assert unexpected.data["name"] == "task"  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_a_traceback_begins_with_the_tasks_own_code(celery: Celery, kind: str) -> None:
    def function() -> None:
        raise ValueError("too bad")

    async def coroutine() -> None:
        raise ValueError("too bad")

    task = celery.task(name="task")(function if kind == "def" else coroutine)
    async with working(celery):
        handle = await task.enqueue()
        with pytest.raises(ValueError, match="too bad"):
            await handle.result(5)
        traceback = (await handle.record()).traceback or ""
    first, second, *_, last = traceback.strip().splitlines()
    assert first == "Traceback (most recent call last):"
    assert f"{__name__.rpartition('.')[2]}.py" in second
    assert last == "ValueError: too bad"


# -- stopped from outside ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_a_hard_time_limit_is_told_in_celerys_order(
    celery: Celery, connect: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """``celery.worker.request.Request.on_timeout``; a stock worker's process is gone, and sends no ``task_postrun``."""
    told: list[str] = []
    connect(signals.task_failure, lambda exception, **_: told.append(f"task_failure {exception!r}"))

    class Base(celery.Task):  # type: ignore[misc,name-defined]
        def on_failure(self, exc: Exception, *_: Any) -> None:
            told.append(f"on_failure {exc!r}")

        def after_return(self, status: str, *_: Any) -> None:
            told.append(f"after_return {status}")

    def function() -> None:
        for _ in range(500):
            time.sleep(0.01)

    async def coroutine() -> None:
        await asyncio.sleep(5)

    body = function if kind == "def" else coroutine
    task = celery.task(base=Base, name="task", time_limit=0.1)(body)
    async with working(celery):
        assert await ended(celery, task) == "FAILURE"
    error = "TimeLimitExceeded(0.1)"
    assert told == [f"on_failure {error}", "after_return FAILURE", f"task_failure {error}"]
    assert "Hard time limit (0.1s) exceeded for task[" in caplog.text


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_a_task_that_is_stopped_is_announced_as_revoked(
    celery: Celery, connect: Any, kind: str
) -> None:
    started = asyncio.Event()
    revoked: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
    failed: list[Any] = []
    loop = asyncio.get_running_loop()
    connect(signals.task_revoked, lambda **named: revoked.set_result(named))
    connect(signals.task_failure, lambda **named: failed.append(named))

    def function() -> None:
        loop.call_soon_threadsafe(started.set)
        for _ in range(500):
            time.sleep(0.01)

    async def coroutine() -> None:
        started.set()
        await asyncio.sleep(5)

    task = celery.task(name="task")(function if kind == "def" else coroutine)
    async with working(celery):
        handle = await task.enqueue()
        async with asyncio.timeout(5):
            await started.wait()
            await handle.cancel()
            named = await revoked
    assert isinstance(named["request"], Context)
    assert named["request"].id == handle.id
    assert (named["sender"].name, named["terminated"], named["expired"]) == ("task", True, False)
    assert not failed


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize("where", ["receiver", "handler"])
async def test_a_receiver_or_handler_that_exits_does_not_take_the_worker_along(
    celery: Celery, connect: Any, caplog: pytest.LogCaptureFixture, kind: str, where: str
) -> None:
    """Celery's pool would replace the child that exits."""

    def leave(*_: Any, **__: Any) -> None:
        sys.exit(3)

    class Base(celery.Task):  # type: ignore[misc,name-defined]
        pass

    if where == "handler":
        Base.on_success = leave
    else:
        connect(signals.task_success, leave)

    def function() -> str:
        return "done"

    async def coroutine() -> str:
        return "done"

    task = celery.task(base=Base, name="task")(function if kind == "def" else coroutine)
    async with working(celery):
        assert await ended(celery, task) == "SUCCESS"
        assert await ended(celery, task) == "SUCCESS"
    assert "SystemExit(3)" in caplog.text


# -- Celery's internals ------------------------------------------------------------------------------------------


def test_whether_tasks_are_eager_is_known_without_reading_the_configuration() -> None:
    app = Celery("unread", broker="memory://", set_as_current=False)
    app.conf.task_always_eager = True
    assert is_always_eager(app) is None  # reading it would read files
    assert app.conf.task_serializer == "json"
    assert is_always_eager(app) is True
    app.conf.task_always_eager = False
    assert is_always_eager(app) is False
