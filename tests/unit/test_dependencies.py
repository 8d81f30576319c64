"""FastAPI's dependencies in tasks: what they get, when they are opened and closed, and what they see."""

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import uuid4

import pytest
from celery import signals
from celery.exceptions import Ignore
from fastapi import Depends, FastAPI, Header, Request, Security
from fastapi.requests import HTTPConnection
from fastapi.security import APIKeyHeader, SecurityScopes
from starlette.exceptions import HTTPException

from celeriac import Celery, TaskContext
from celeriac.errors import InvalidArguments, TaskRevoked
from celeriac.task import Task
from celeriac.worker.embedded import run_embedded

log: list[str] = []


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    log.clear()


@pytest.fixture
def celery() -> Celery:
    url = f"memory://{uuid4()}"
    app = Celery("dependencies", broker=url, backend=url, set_as_current=False)
    app.conf.celeriac_shutdown_grace = 0.3
    return app


@asynccontextmanager
async def working(app: Celery) -> AsyncIterator[None]:
    async with app, run_embedded(app, concurrency=10):
        yield


class Session:
    """A resource that tells what happens to it."""

    def __init__(self, name: str = "session") -> None:
        self.name = name

    def add(self, value: int) -> int:
        log.append(f"{self.name} adds {value}")
        return value + 1


async def get_session() -> AsyncIterator[Session]:
    log.append("open")
    try:
        yield Session()
        log.append("commit")
    except Exception as exc:
        log.append(f"rollback: {type(exc).__name__}")
        raise
    finally:
        log.append("close")


def get_blocking_session() -> Iterator[Session]:
    log.append(f"open in {'a thread' if threading.current_thread().name.startswith('AnyIO') else 'the loop'}")
    try:
        yield Session("blocking session")
    except BaseException as exc:
        log.append(f"rollback: {type(exc).__name__}")
        raise
    finally:
        log.append("close")


SessionDependency = Annotated[Session, Depends(get_session)]


class Settings:
    """A class as a dependency, whose own parameter has a default."""

    def __init__(self, session: SessionDependency, factor: int = 2) -> None:
        self.session = session
        self.factor = factor


# -- how tasks get them ------------------------------------------------------------------------------------------


async def test_a_coroutine_gets_what_it_depends_on_and_callers_do_not_send_it(celery: Celery) -> None:
    @celery.task
    async def add(value: int, session: SessionDependency) -> int:
        return session.add(value)

    async with working(celery):
        handle = await add.enqueue(1)  # type: ignore[call-arg]
        assert await handle.result(5) == 2
        record = await handle.record()
    assert log == ["open", "session adds 1", "commit", "close"]
    assert record.args == [1]
    assert record.kwargs == {}


async def test_a_function_gets_it_in_its_thread(celery: Celery) -> None:
    @celery.task
    def add(value: int, session: Session = Depends(get_blocking_session)) -> int:  # noqa: B008
        return session.add(value)

    async with working(celery):
        assert await (await add.enqueue(1)).result(5) == 2
    assert log == ["open in a thread", "blocking session adds 1", "close"]


async def test_an_async_generator_gets_it(celery: Celery) -> None:
    @celery.task
    async def words(
        text: str, session: Annotated[Session, Depends(get_session)] = None
    ) -> AsyncIterator[str]:  # type: ignore[assignment]
        for word in text.split():
            yield f"{session.name}: {word}"

    async with working(celery):
        handle = await words.enqueue("a b")
        await handle.result(5)
        values = [event.data async for event in handle.events() if event.kind == "value"]
    assert values == ["session: a", "session: b"]
    assert log == ["open", "commit", "close"]


async def test_a_bound_task_gets_it_beside_its_context(celery: Celery) -> None:
    @celery.task(bind=True)
    async def tell(
        self: Task[..., Any], context: TaskContext, settings: Annotated[Settings, Depends()], value: int
    ) -> list[Any]:
        return [self.name == context.name, self.request.id == context.id, settings.factor, value]

    async with working(celery):
        assert await (await tell.enqueue(7)).result(5) == [True, True, 2, 7]  # type: ignore[call-arg,arg-type]
    assert log == ["open", "commit", "close"]


async def test_a_call_has_each_dependency_once_unless_it_is_asked_for_anew(celery: Celery) -> None:
    made: list[object] = []

    async def make() -> object:
        made.append(object())
        return made[-1]

    def sub(made_here: Annotated[object, Depends(make)]) -> object:
        return made_here

    @celery.task
    async def compare(
        first: Annotated[object, Depends(make)],
        second: Annotated[object, Depends(sub)],
        third: Annotated[object, Depends(make, use_cache=False)],
    ) -> list[bool]:
        return [first is second, first is third]

    async with working(celery):
        assert await (await compare.enqueue()).result(5) == [True, False]  # type: ignore[call-arg]
        assert await (await compare.enqueue()).result(5) == [True, False]  # type: ignore[call-arg]
    assert len(made) == 4


async def test_security_scopes_and_schemes_work_on_the_headers_of_the_message(celery: Celery) -> None:
    scheme = APIKeyHeader(name="x-api-key")

    async def user(scopes: SecurityScopes, key: Annotated[str, Depends(scheme)]) -> str:
        return f"{key}: {scopes.scope_str}"

    @celery.task
    async def whoami(user: Annotated[str, Security(user, scopes=["read", "write"])]) -> str:
        return user

    async with working(celery):
        handle = await whoami.using(headers={"X-API-Key": "k1"}).enqueue()  # type: ignore[call-arg]
        assert await handle.result(5) == "k1: read write"
        with pytest.raises(HTTPException, match="401: Not authenticated"):
            await (await whoami.enqueue()).result(5)  # type: ignore[call-arg]


async def test_a_request_stands_for_the_message(celery: Celery) -> None:
    web = FastAPI()
    web.state.pool = "a pool"
    celery.fastapi_app = web

    def from_request(request: Request, connection: HTTPConnection) -> list[Any]:
        same = request is connection
        return [same, request.app.state.pool, request.url.path, request.headers["x-tenant"], request.client]

    @celery.task
    async def look(seen: Annotated[list[Any], Depends(from_request)], request: Request) -> list[Any]:
        return [*seen, request.headers["tenant-id"]]

    async with working(celery):
        call = look.using(headers={"X-Tenant": "acme", "tenant_id": 7})
        result = await (await call.enqueue()).result(5)  # type: ignore[call-arg]
    assert result == [True, "a pool", f"/{look.name}", "acme", None, "7"]


async def test_a_header_parameter_reads_the_message_and_says_what_is_missing(celery: Celery) -> None:
    def tenant(x_tenant: Annotated[str, Header()], x_shard: Annotated[int, Header()] = 3) -> str:
        return f"{x_tenant}/{x_shard}"

    @celery.task
    async def where(tenant: Annotated[str, Depends(tenant)]) -> str:
        return tenant

    async with working(celery):
        call = where.using(headers={"X-Tenant": "acme", "x-shard": "5"})
        assert await (await call.enqueue()).result(5) == "acme/5"  # type: ignore[call-arg]
        with pytest.raises(InvalidArguments, match=r"wants the header 'x-tenant'.*using\(headers="):
            await (await where.enqueue()).result(5)  # type: ignore[call-arg]
        call = where.using(headers={"X-Tenant": "acme", "x-shard": "none"})
        with pytest.raises(InvalidArguments, match="header x-shard"):
            await (await call.enqueue()).result(5)  # type: ignore[call-arg]


async def test_overrides_of_the_app_hold_for_its_tasks(celery: Celery) -> None:
    celery.fastapi_app = web = FastAPI()

    @celery.task
    async def add(value: int, session: SessionDependency) -> int:
        return session.add(value)

    async with working(celery):
        web.dependency_overrides[get_session] = lambda: Session("fake")
        await (await add.enqueue(1)).result(5)  # type: ignore[call-arg]
        web.dependency_overrides.clear()
        await (await add.enqueue(2)).result(5)  # type: ignore[call-arg]
    assert log == ["fake adds 1", "open", "session adds 2", "commit", "close"]


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


async def set_variable() -> AsyncIterator[None]:
    token = variable.set("set by a dependency")
    yield
    variable.reset(token)


@pytest.mark.parametrize("with_receiver", [False, True], ids=["alone", "with a receiver"])
async def test_context_variables_that_a_dependency_sets_are_there_in_the_task(
    celery: Celery, with_receiver: bool
) -> None:
    @celery.task
    async def on_the_loop(_: Annotated[None, Depends(set_variable)]) -> str:
        return variable.get()

    @celery.task
    def in_a_thread(_: Annotated[None, Depends(set_variable)]) -> str:
        return variable.get()

    @celery.task
    async def plain() -> str:
        return variable.get()

    def on_prerun(**_: Any) -> None:
        """Has the thread kept, and given its context, before the dependencies are opened."""

    if with_receiver:
        signals.task_prerun.connect(on_prerun)
    try:
        async with working(celery):
            assert await (await on_the_loop.enqueue()).result(5) == "set by a dependency"  # type: ignore[call-arg]
            assert await (await in_a_thread.enqueue()).result(5) == "set by a dependency"  # type: ignore[call-arg]
            assert await (await plain.enqueue()).result(5) == "unset"
    finally:
        signals.task_prerun.disconnect(on_prerun)


# -- how they end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["coroutine", "function"])
async def test_a_dependency_sees_what_the_task_raises(celery: Celery, kind: str) -> None:
    def fails_in_a_thread(session: SessionDependency) -> None:
        raise ValueError("bad row")

    async def fails(session: SessionDependency) -> None:
        raise ValueError("bad row")

    task = celery.task(fails if kind == "coroutine" else fails_in_a_thread)
    async with working(celery):
        handle = await task.enqueue()  # type: ignore[call-arg]
        with pytest.raises(ValueError, match="bad row"):
            await handle.result(5)
        record = await handle.record()
    assert log == ["open", "rollback: ValueError", "close"]
    assert record.traceback is not None
    assert "dependency_scope" not in record.traceback


async def test_a_commit_that_fails_fails_the_task(celery: Celery) -> None:
    async def session() -> AsyncIterator[Session]:
        yield Session()
        raise ConnectionError("the database is gone")

    @celery.task
    async def add(session: Annotated[Session, Depends(session)]) -> int:
        return session.add(1)

    async with working(celery):
        handle = await add.enqueue()  # type: ignore[call-arg]
        with pytest.raises(ConnectionError, match="the database is gone"):
            await handle.result(5)
        assert await handle.state() == "FAILURE"


async def test_an_exception_that_a_dependency_swallows_fails_the_task_all_the_same(celery: Celery) -> None:
    async def swallows() -> AsyncIterator[None]:
        try:
            yield
        except ValueError:
            log.append("swallowed")

    async def translates(_: Annotated[None, Depends(swallows)]) -> AsyncIterator[None]:
        try:
            yield
        except LookupError as exc:
            raise HTTPException(409, "translated") from exc

    @celery.task
    async def fails(what: str, _: Annotated[None, Depends(translates)]) -> None:
        raise ValueError("bad row") if what == "value" else LookupError("no row")

    async with working(celery):
        with pytest.raises(ValueError, match="bad row"):
            await (await fails.enqueue("value")).result(5)  # type: ignore[call-arg]
        with pytest.raises(HTTPException, match="translated"):
            await (await fails.enqueue("lookup")).result(5)  # type: ignore[call-arg]
    assert log == ["swallowed"]


async def test_what_was_open_is_closed_when_the_next_cannot_be_opened(celery: Celery) -> None:
    async def fails(session: SessionDependency) -> None:
        raise ConnectionError("no mail server")

    @celery.task
    async def never(mailer: Annotated[None, Depends(fails)]) -> None:
        log.append("ran")

    async with working(celery):
        with pytest.raises(ConnectionError, match="no mail server"):
            await (await never.enqueue()).result(5)  # type: ignore[call-arg]
    assert log == ["open", "rollback: ConnectionError", "close"]


@pytest.mark.parametrize("kind", ["coroutine", "function"])
async def test_each_attempt_has_its_own(celery: Celery, kind: str) -> None:
    ids: list[int] = []
    kept: list[Session] = []

    def once(session: Session) -> str:
        kept.append(session)
        ids.append(id(session))
        if len(ids) < 3:
            raise ConnectionError("try again")
        return "done"

    options: dict[str, Any] = {"autoretry_for": (ConnectionError,), "retry_kwargs": {"countdown": 0}}
    if kind == "coroutine":

        @celery.task(**options)
        async def works(session: SessionDependency) -> str:
            return once(session)

        task: Any = works
    else:

        @celery.task(**options)
        def works_in_a_thread(session: SessionDependency) -> str:
            return once(session)

        task = works_in_a_thread

    async with working(celery):
        assert await (await task.enqueue()).result(10) == "done"
    assert len(set(ids)) == 3
    assert log == ["open", "rollback: ConnectionError", "close"] * 2 + ["open", "commit", "close"]


@pytest.mark.parametrize("when", ["opening", "closing"])
async def test_what_a_dependency_raises_is_retried_by_autoretry(celery: Celery, when: str) -> None:
    attempts: list[int] = []

    async def flaky() -> AsyncIterator[None]:
        attempts.append(1)
        if when == "opening" and len(attempts) < 2:
            raise ConnectionError
        yield
        if when == "closing" and len(attempts) < 2:
            raise ConnectionError

    @celery.task(autoretry_for=(ConnectionError,), retry_kwargs={"countdown": 0})
    async def works(_: Annotated[None, Depends(flaky)]) -> str:
        return "done"

    async with working(celery):
        assert await (await works.enqueue()).result(10) == "done"  # type: ignore[call-arg]
    assert len(attempts) == 2


async def test_a_retry_and_an_ignore_stand_although_the_clean_up_fails(celery: Celery) -> None:
    async def fails_to_roll_back() -> AsyncIterator[None]:
        try:
            yield
        except Exception as exc:
            raise OSError("no rollback") from exc

    @celery.task(bind=True, max_retries=1)
    async def retries(self: Task[..., Any], _: Annotated[None, Depends(fails_to_roll_back)]) -> None:
        log.append(f"attempt {self.request.retries}")
        raise Ignore if self.request.retries else self.retry(countdown=0)

    ended = asyncio.Event()

    def on_postrun(state: str, **_: Any) -> None:
        log.append(state)
        if state == "IGNORED":
            ended.set()

    signals.task_postrun.connect(on_postrun)
    try:
        async with working(celery):
            await retries.enqueue()  # type: ignore[call-arg]
            await asyncio.wait_for(ended.wait(), 10)
    finally:
        signals.task_postrun.disconnect(on_postrun)
    assert log == ["attempt 0", "RETRY", "attempt 1", "IGNORED"]


async def test_function_scope_ends_before_request_scope(celery: Celery) -> None:
    def tells(name: str) -> Any:
        async def dependency() -> AsyncIterator[None]:
            yield
            log.append(name)

        return dependency

    @celery.task
    async def works(
        _a: Annotated[None, Depends(tells("function"), scope="function")],
        _b: Annotated[None, Depends(tells("request"))],
    ) -> None:
        log.append("ran")

    async with working(celery):
        await (await works.enqueue()).result(5)  # type: ignore[call-arg]
    assert log == ["ran", "function", "request"]


# -- how they are stopped ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["coroutine", "function"])
@pytest.mark.parametrize("limit", ["hard", "soft"])
async def test_a_time_limit_is_seen_by_the_dependencies(celery: Celery, kind: str, limit: str) -> None:
    options: dict[str, Any] = {"time_limit" if limit == "hard" else "soft_time_limit": 0.2}
    if kind == "coroutine":

        @celery.task(**options)
        async def hangs(session: SessionDependency) -> None:
            await asyncio.sleep(10)

        task: Any = hangs
    else:

        @celery.task(**options)
        def hangs_in_a_thread(session: SessionDependency) -> None:
            pause = threading.Event()
            for _ in range(100):
                pause.wait(0.05)

        task = hangs_in_a_thread

    async with working(celery):
        with pytest.raises(Exception, match=r"(TimeLimitExceeded|SoftTimeLimitExceeded|0\.2)"):
            await (await task.enqueue()).result(5)
    name = "TimeLimitExceeded" if limit == "hard" else "SoftTimeLimitExceeded"
    assert log == ["open", f"rollback: {name}", "close"]


@pytest.mark.parametrize("where", ["opening", "closing"])
async def test_opening_and_closing_are_within_the_limits(celery: Celery, where: str) -> None:
    async def slow(session: SessionDependency) -> AsyncIterator[None]:
        if where == "opening":
            await asyncio.sleep(10)
        yield
        await asyncio.sleep(10)

    @celery.task(time_limit=0.3)
    async def works(_: Annotated[None, Depends(slow)]) -> None:
        log.append("ran")

    async with working(celery):
        with pytest.raises(Exception, match=r"0\.3"):
            await (await works.enqueue()).result(5)  # type: ignore[call-arg]
    if where == "opening":
        assert log == ["open", "rollback: TimeLimitExceeded", "close"]
    else:
        assert log[:2] == ["open", "ran"]
        assert log[-1] == "close"
        assert "commit" not in log


@pytest.mark.parametrize("where", ["opening", "running", "closing"])
async def test_a_cancel_stops_it_wherever_it_is(celery: Celery, where: str) -> None:
    there = asyncio.Event()

    async def wait_if(place: str) -> None:
        if place == where:
            there.set()
            await asyncio.sleep(10)

    async def slow(session: SessionDependency) -> AsyncIterator[None]:
        await wait_if("opening")
        yield
        await wait_if("closing")

    @celery.task
    async def works(_: Annotated[None, Depends(slow)]) -> None:
        await wait_if("running")

    async with working(celery):
        handle = await works.enqueue()  # type: ignore[call-arg]
        await asyncio.wait_for(there.wait(), 5)
        assert await handle.cancel()
        with pytest.raises(TaskRevoked):
            await handle.result(5)
        assert await handle.state() == "REVOKED"
    assert log[0] == "open"
    assert log[-1] == "close"
    assert "commit" not in log
    if where != "closing":
        assert log == ["open", "rollback: TaskRevokedError", "close"]


async def test_a_shutdown_closes_what_is_open(celery: Celery) -> None:
    there = asyncio.Event()

    @celery.task
    async def works(session: SessionDependency) -> None:
        there.set()
        await asyncio.sleep(10)

    async with working(celery):
        await works.enqueue()  # type: ignore[call-arg]
        await asyncio.wait_for(there.wait(), 5)
    assert log == ["open", "rollback: HandedBack", "close"]


# -- side by side ------------------------------------------------------------------------------------------------


async def test_nothing_leaks_between_a_thousand_tasks_that_run_side_by_side(celery: Celery) -> None:
    opened, closed = 0, 0
    arrived = 0
    all_there = asyncio.Event()

    async def own(request: Request) -> AsyncIterator[dict[str, Any]]:
        nonlocal opened, closed
        opened += 1
        mine = {"number": request.headers["x-number"]}
        variable.set(mine["number"])
        request.state.number = mine["number"]
        await asyncio.sleep(0)
        yield mine
        assert variable.get() == mine["number"] == request.state.number
        closed += 1

    async def sub(own: Annotated[dict[str, Any], Depends(own)]) -> dict[str, Any]:
        await asyncio.sleep(0)
        return own

    @celery.task
    async def compare(
        number: int,
        a: Annotated[dict[str, Any], Depends(own)],
        b: Annotated[dict[str, Any], Depends(sub)],
        request: Request,
    ) -> bool:
        nonlocal arrived
        arrived += 1
        if arrived == 1000:
            all_there.set()
        await all_there.wait()
        return a is b and str(number) == a["number"] == variable.get() == request.state.number

    async with celery, run_embedded(celery, concurrency=1000):
        calls = [compare.using(headers={"X-Number": str(number)}) for number in range(1000)]
        handles = await asyncio.gather(*(call.enqueue(number) for number, call in enumerate(calls)))  # type: ignore[call-arg]
        results = await asyncio.gather(*(handle.result(60) for handle in handles))
    assert all(results)
    assert (opened, closed) == (1000, 1000)
