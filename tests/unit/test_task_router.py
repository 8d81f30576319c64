"""``TaskRouter``: tasks that are declared without an app; and stubs, whose functions are elsewhere."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import date
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import chain
from fastapi import APIRouter
from pydantic import BaseModel

from celeriac import Celery, Task, TaskContext, TaskRouter
from celeriac.errors import ConfigurationError, InvalidArguments
from celeriac.worker.embedded import run_embedded


class Report(BaseModel):
    month: date
    lines: int = 0


def new_app(name: str = "unit", **conf: Any) -> Celery:
    url = f"memory://{uuid4()}"
    app = Celery(name, broker=url, backend=url, set_as_current=False)
    app.conf.update(celeriac_shutdown_grace=1.0, **conf)
    return app


@pytest.fixture
def celery() -> Celery:
    return new_app()


async def finalized(app: Celery) -> None:
    """Tasks are made when they are first used, which reads the configuration."""
    await asyncio.to_thread(app.finalize)


@asynccontextmanager
async def working(app: Celery) -> AsyncIterator[None]:
    async with app, run_embedded(app, concurrency=5):
        yield


@pytest.mark.filterwarnings("error")
async def test_a_queue_and_a_priority_of_their_own_are_not_deprecated(celery: Celery) -> None:
    tasks = TaskRouter(queue="slow")

    @tasks.task
    async def build() -> None: ...

    @celery.task(name="own", queue="fast", priority=3)
    async def own() -> None: ...

    @celery.stub(name="elsewhere", queue="far")
    async def elsewhere() -> None: ...

    celery.include_router(tasks)
    await finalized(celery)
    async with celery:
        assert (await (await elsewhere.enqueue()).record()).queue == "far"
        assert (await (await build.enqueue()).record()).queue == "slow"
        assert (await (await own.enqueue()).record()).queue == "fast"
    assert own.priority == 3


def test_a_router_of_fastapi_is_no_router_of_tasks(celery: Celery) -> None:
    with pytest.raises(ConfigurationError, match=r"takes a TaskRouter.*app\.include_router"):
        celery.include_router(APIRouter())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="takes a TaskRouter"):
        TaskRouter().include_router(APIRouter())  # type: ignore[arg-type]


async def test_a_routers_tasks_are_the_apps(celery: Celery) -> None:
    tasks = TaskRouter(prefix="reports.", time_limit=60)

    @tasks.task
    async def build(month: date) -> Report:
        return Report(month=month)

    @tasks.task(bind=True, time_limit=5, max_retries=1, default_retry_delay=0)
    def flaky(self: Any, context: TaskContext) -> str:
        if self.request.retries == 0:
            raise self.retry()
        return context.name

    @tasks.task(name="stream")
    async def words(text: str) -> AsyncIterator[str]:
        for word in text.split():
            yield word

    celery.include_router(tasks)
    await finalized(celery)
    assert isinstance(build, Task)
    assert celery.tasks["reports.build"] == build
    assert (build.name, flaky.name, words.name) == ("reports.build", "reports.flaky", "reports.stream")
    assert (build.time_limit, flaky.time_limit) == (60, 5)
    async with working(celery):
        month = date(2031, 2, 1)
        assert await (await build.enqueue(month)).result(5) == Report(month=month)
        assert await (await build.using(priority=3).enqueue(month)).result(5) == Report(month=month)
        assert await (await flaky.enqueue()).result(5) == "reports.flaky"  # type: ignore[call-arg]
        assert await (await words.enqueue("a b")).result(5) is None
        assert await (await celery.enqueue(build.s("2031-02-01"))).result(5) == Report(month=month)
        result = await asyncio.to_thread(lambda: build.delay("2031-02-01").get(timeout=5))
        assert result == {"month": "2031-02-01", "lines": 0}
        with pytest.raises(InvalidArguments):
            await build.enqueue("no date")  # type: ignore[arg-type]


async def test_a_task_of_no_app_says_so() -> None:
    tasks = TaskRouter()

    @tasks.task
    async def build() -> None:
        """Build it."""

    for use in (lambda: build.enqueue(), lambda: build.delay(), lambda: build.s(), lambda: build()):
        with pytest.raises(
            ConfigurationError, match=r"build is a task of a TaskRouter that no app has included"
        ):
            use()
    # Whoever only looks at a module's names is not disturbed.
    assert not isinstance(build, int)
    assert not hasattr(build, "__test__")
    assert (build.__name__, build.__doc__) == ("build", "Build it.")
    assert "no app has included" in repr(build)
    inspect.getmembers(build)
    inspect.unwrap(build)


def test_names_are_celerys_unless_there_is_a_prefix(celery: Celery) -> None:
    inner, outer, plain = TaskRouter(prefix="pdf."), TaskRouter(prefix="reports."), TaskRouter()

    @inner.task
    def draw() -> None: ...

    @inner.task(name="print")
    def print_it() -> None: ...

    @plain.task
    def nothing() -> None: ...

    @plain.task(name="own")
    def named() -> None: ...

    outer.include_router(inner, prefix="v1.")
    celery.include_router(outer, prefix="acme.")
    celery.include_router(plain)
    assert draw.name == "acme.reports.v1.pdf.draw"
    assert print_it.name == "acme.reports.v1.pdf.print"
    assert nothing.name == f"{__name__}.nothing"
    assert named.name == "own"


def test_what_is_said_nearer_to_the_function_wins(celery: Celery) -> None:
    inner = TaskRouter(max_retries=2, time_limit=2)
    outer = TaskRouter(max_retries=3, time_limit=3, rate_limit="3/s", priority=3)

    @inner.task(max_retries=1)
    def deep() -> None: ...

    outer.include_router(inner, rate_limit="4/s", time_limit=4)
    celery.include_router(outer, priority=5, acks_late=False, rate_limit="5/s")
    assert (deep.max_retries, deep.time_limit, deep.rate_limit, deep.priority, deep.acks_late) == (
        1,
        2,
        "4/s",
        3,
        False,
    )


def test_a_task_that_comes_later_is_there_too(celery: Celery) -> None:
    inner, outer = TaskRouter(), TaskRouter(prefix="late.")
    celery.include_router(outer)
    outer.include_router(inner)
    del outer
    gc.collect()

    @inner.task
    def after() -> None: ...

    assert after.name == "late.after"
    celery.finalize()

    @inner.task
    def last() -> None: ...

    assert last.name in celery.tasks


def test_what_cannot_be_is_refused(celery: Celery) -> None:
    one, two = TaskRouter(), TaskRouter(prefix="x.")

    @one.task(name="same")
    def first() -> None: ...

    @celery.task(name="x.taken")
    def taken() -> None: ...

    @two.task(name="taken")
    def second() -> None: ...

    one.include_router(two)
    for circle in (lambda: one.include_router(one), lambda: two.include_router(one)):
        with pytest.raises(ConfigurationError, match="cannot include itself"):
            circle()
    with pytest.raises(ConfigurationError, match="a router has a prefix"):
        TaskRouter(name="x")
    with pytest.raises(ConfigurationError, match="a router has a prefix"):
        celery.include_router(one, name="x")
    celery.finalize()
    with pytest.raises(ConfigurationError, match=r"two tasks named x\.taken"):
        celery.include_router(two)
    other = new_app()
    other.include_router(one)
    other.include_router(one)  # once more changes nothing
    twice = TaskRouter()

    @twice.task(name="same")
    def third() -> None: ...

    with pytest.raises(ConfigurationError, match="two tasks named same"):
        other.include_router(twice)


async def test_one_router_in_several_apps() -> None:
    tasks = TaskRouter(prefix="shared.")

    @tasks.task
    async def where(context: TaskContext) -> str:
        return context.request.delivery_info["routing_key"]  # type: ignore[no-any-return]

    @tasks.task
    async def ask() -> str:
        return await (await where.enqueue()).result(5)  # type: ignore[call-arg]

    one, two = new_app("one", task_default_queue="q1"), new_app("two", task_default_queue="q2")
    for app in (one, two):
        app.include_router(tasks)
        await finalized(app)
    assert one.tasks["shared.where"] != two.tasks["shared.where"]
    assert where.app is two  # the last one, where nothing says otherwise
    async with working(one):
        assert where.app is one  # the one that is open here
        assert await (await ask.enqueue()).result(5) == "q1"
    async with working(two):
        assert await (await ask.enqueue()).result(5) == "q2"
    async with working(one), working(two):
        for app, queue in ((one, "q1"), (two, "q2")):
            # The running task's own.
            assert await (await app.enqueue("shared.ask")).result(5) == queue


def test_an_app_that_is_gone_is_forgotten() -> None:
    tasks = TaskRouter()

    @tasks.task
    def nothing() -> None: ...

    for number in range(3):
        app = new_app(f"app{number}")
        app.include_router(tasks)
        assert nothing.app is app
        app.close()
    del app
    gc.collect()
    with pytest.raises(ConfigurationError, match="no app has included"):
        _ = nothing.app
    assert len(tasks._receivers) == 0


def test_the_same_router_under_two_prefixes(celery: Celery) -> None:
    tasks = TaskRouter()

    @tasks.task
    def nothing() -> None: ...

    celery.include_router(tasks, prefix="a.")
    celery.include_router(tasks, prefix="b.", time_limit=3)
    assert nothing.name == "a.nothing"
    assert celery.tasks["b.nothing"].time_limit == 3


def test_include_names_modules_and_their_routers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "from celeriac import TaskRouter\ntasks = TaskRouter(prefix='inc.')\n@tasks.task\ndef one(): pass\n"
    )
    (tmp_path / "routed_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    app = Celery("inc", broker="memory://", include=["routed_module:tasks", "json"], set_as_current=False)
    for _ in range(2):
        app.loader.import_default_modules()
    assert "inc.one" in app.tasks
    for wrong in ("routed_module:nothing", "routed_module:one", "json:dumps"):
        app = Celery("inc", broker="memory://", include=[wrong], set_as_current=False)
        with pytest.raises(ConfigurationError, match=f"include names {wrong}, but .* is no TaskRouter"):
            app.loader.import_default_modules()


# -- stubs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def url() -> str:
    return f"memory://{uuid4()}"


def client_of(url: str) -> Celery:
    return Celery("api", broker=url, backend=url, set_as_current=False)


def worker_of(url: str) -> Celery:
    app = Celery("worker", broker=url, backend=url, set_as_current=False)
    app.conf.update(celeriac_shutdown_grace=1.0, celeriac_unknown_task_grace=0.1)

    @app.task(name="worker.tasks.build")
    async def build(month: date, copies: int = 1) -> Report:
        return Report(month=month, lines=copies)

    @app.task
    async def other() -> None: ...

    return app


async def test_a_stub_enqueues_by_name_and_is_checked(url: str) -> None:
    client, worker = client_of(url), worker_of(url)

    @client.stub(name="worker.tasks.build")
    async def build(month: date, copies: int = 1) -> Report:
        raise NotImplementedError

    month = date(2031, 2, 1)
    async with client, working(worker):
        handle = await build.enqueue(month, copies=3)
        assert await handle.result(5) == Report(month=month, lines=3)
        assert await (await client.enqueue(build.s(month))).result(5) == Report(month=month, lines=1)
        assert await (await client.enqueue("worker.tasks.build", (month,))).result(5) == Report(
            month=month, lines=1
        )
        last = await client.enqueue(chain(build.si(month), build.si(month, 4)))
        assert await last.result(5) == Report(month=month, lines=4)
        assert await (await build.using(priority=1).enqueue(month)).result(5) == Report(month=month, lines=1)
        result = await asyncio.to_thread(lambda: build.delay(month).get(timeout=5))
        assert result == {"month": "2031-02-01", "lines": 1}
        for wrong in (("no date",), (month, "x"), ()):
            with pytest.raises(InvalidArguments):
                await build.enqueue(*wrong)
    assert "worker.tasks.build" not in client.tasks
    with pytest.raises(ConfigurationError, match=r"worker\.tasks\.build is a stub"):
        build(month)
    with pytest.raises(ConfigurationError, match=r"worker\.tasks\.build is a stub"):
        build.apply((month,))
    with pytest.raises(ConfigurationError, match="needs the name"):
        client.stub(queue="x")


async def test_a_stubs_options_are_those_of_its_calls(url: str) -> None:
    client = client_of(url)
    stubs = TaskRouter(prefix="worker.tasks.", queue="slow")

    @stubs.stub()
    async def build(month: date) -> Report: ...  # type: ignore[empty-body]

    @stubs.stub(name="other", queue="other")
    def something() -> None: ...

    client.include_router(stubs)
    await finalized(client)
    await asyncio.to_thread(lambda: build.name)
    assert (build.name, something.name) == ("worker.tasks.build", "worker.tasks.other")
    async with client:
        for handle in (
            await build.enqueue(date(2031, 2, 1)),
            await client.enqueue(build.s("2031-02-01")),
            await client.enqueue("worker.tasks.build", ("2031-02-01",)),
            client.handle(build.delay("2031-02-01").id),
        ):
            assert (await handle.record()).queue == "slow"
        assert (await (await something.enqueue()).record()).queue == "other"
        assert await client.queue_size("slow") == 4


async def test_a_worker_does_not_take_a_stub_for_the_task(url: str, caplog: pytest.LogCaptureFixture) -> None:
    app = client_of(url)
    app.conf.update(celeriac_shutdown_grace=1.0, celeriac_unknown_task_grace=0.1)

    @app.stub(name="worker.tasks.build")
    async def build(month: date) -> Report:
        raise AssertionError("never run")

    caplog.set_level(logging.INFO)
    async with working(app):
        handle = await build.enqueue(date(2031, 2, 1))
        with pytest.raises(Exception, match=r"worker\.tasks\.build"):
            await handle.result(5)
        async with asyncio.timeout(5):
            while not (letters := await app.broker.dead_letters()):
                await asyncio.sleep(0.01)
    assert letters[0].reason == "unknown task 'worker.tasks.build', a stub in this worker"
    (parked,) = [message for message in caplog.messages if "parked" in message]
    assert "it is a stub in this worker, which has not the task's function" in parked
    assert "consume from celery" in parked


async def test_where_task_and_stub_are_in_one_program_the_task_runs(url: str) -> None:
    app = worker_of(url)

    @app.stub(name="worker.tasks.build")
    async def build(month: date) -> Report:
        raise AssertionError("never run")

    async with working(app):
        assert await (await build.enqueue(date(2031, 2, 1))).result(5) == Report(
            month=date(2031, 2, 1), lines=1
        )


@pytest.fixture
def eager(url: str) -> Iterator[Celery]:
    app = worker_of(url)
    app.conf.task_always_eager = True
    app.finalize()
    _ = app.settings
    yield app
    app.close()


def test_an_eager_call_of_a_stub_runs_the_task_if_it_is_here(eager: Celery) -> None:
    @eager.stub(name="worker.tasks.build")
    async def build(month: date, copies: int = 1) -> Report:
        raise AssertionError("never run")

    @eager.stub(name="elsewhere")
    async def elsewhere() -> None: ...

    async def main() -> None:
        assert await (await build.enqueue(date(2031, 2, 1))).result() == Report(
            month=date(2031, 2, 1), lines=1
        )
        with pytest.raises(ConfigurationError, match="elsewhere is a stub"):
            await elsewhere.enqueue()

    asyncio.run(main())
