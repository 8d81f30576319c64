"""FastAPI's dependencies in tasks: what they get, and that they share nothing."""

import asyncio
import contextlib
import contextvars
import gc
import logging
import weakref
from collections.abc import AsyncIterator
from typing import Annotated, Any, Optional

import pytest
from celery import signals
from fastapi import Depends, FastAPI, Header, Request, Security
from fastapi.requests import HTTPConnection
from fastapi.security import APIKeyHeader, SecurityScopes
from starlette.exceptions import HTTPException
from tests.unit.dependencies.sessions import (
    Session,
    SessionDependency,
    Settings,
    get_blocking_session,
    get_session,
    log,
    working,
)

from celeriac import Celery, TaskContext
from celeriac.errors import InvalidArguments
from celeriac.fastapi.context import task_context
from celeriac.task import Task
from celeriac.worker.embedded import run_embedded

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


async def test_a_context_that_may_be_missing_is_there_in_a_task(celery: Celery) -> None:
    @celery.task
    async def old(context: Optional[TaskContext] = None) -> str:  # noqa: UP045
        return context.id if context else "nobody"

    @celery.task
    async def new(context: TaskContext | None = None) -> str:
        return context.id if context else "nobody"

    async with working(celery):
        for task in (old, new):
            handle = await task.enqueue()
            assert await handle.result(5) == handle.id
    with pytest.raises(InvalidArguments, match="no argument 'context'"):
        await new.enqueue(context=None)


@pytest.mark.parametrize("whose", ["app", "request"])
async def test_who_has_no_app_is_told_why_its_state_is_empty(celery: Celery, whose: str) -> None:
    def pool(request: Request) -> Any:
        state = request.app.state if whose == "app" else request.state
        assert not hasattr(state, "other")
        state.mine = 1
        assert state.mine == 1
        return state.pool

    @celery.task
    async def use(pool: Annotated[Any, Depends(pool)]) -> None: ...

    async with working(celery):
        with pytest.raises(
            AttributeError, match=r"no 'pool'.*knows of no FastAPI app.*celeriac_fastapi_app = "
        ):
            await (await use.enqueue()).result(5)  # type: ignore[call-arg]


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


async def test_a_dependency_may_know_the_task(celery: Celery) -> None:
    async def tracker(context: Annotated[TaskContext | None, Depends(task_context)]) -> str:
        assert context is not None
        context.progress(1, 2)
        return context.id

    @celery.task(bind=True)
    async def tell(self: Task[..., Any], task_id: Annotated[str, Depends(tracker)]) -> bool:
        return bool(task_id == self.request.id)

    async with working(celery):
        handle = await tell.enqueue()  # type: ignore[call-arg]
        assert await handle.result(5)
        assert [event.data async for event in handle.events() if event.kind == "progress"]
    assert task_context(HTTPConnection({"type": "http"})) is None


@pytest.mark.parametrize("kind", ["coroutine", "function"])
async def test_each_call_of_a_map_has_its_own(celery: Celery, kind: str) -> None:
    if kind == "coroutine":

        @celery.task
        async def add(session: SessionDependency, value: int) -> int:
            return session.add(value)

        task: Any = add
    else:

        @celery.task
        def add_in_a_thread(session: SessionDependency, value: int) -> int:
            return session.add(value)

        task = add_in_a_thread

    async with working(celery):
        assert await (await celery.enqueue(task.map([1, 2]))).result(5) == [2, 3]
    assert log == [
        *["open", "session adds 1", "commit", "close"],
        *["open", "session adds 2", "commit", "close"],
    ]


@pytest.mark.parametrize("checked", ["by the worker", "not at all", "by Celery"])
async def test_arguments_may_follow_a_dependency(celery: Celery, checked: str) -> None:
    celery.conf.celeriac_validate_arguments = checked != "not at all"

    @celery.task(pydantic=checked == "by Celery")
    async def add(first: int, session: SessionDependency, second: int) -> int:
        return session.add(first + second)

    async with working(celery):
        assert await (await add.enqueue(1, 2)).result(5) == 4  # type: ignore[call-arg,arg-type]
        assert (await asyncio.to_thread(add.apply, (1, 2))).get() == 4


async def test_an_override_may_look_at_the_request_where_the_original_does_not(celery: Celery) -> None:
    celery.fastapi_app = web = FastAPI()

    async def original() -> str:
        return "original"

    @celery.task
    async def tell(text: Annotated[str, Depends(original)]) -> str:
        return text

    async with working(celery):
        call = tell.using(headers={"X-Name": "Ada"})
        assert await (await call.enqueue()).result(5) == "original"  # type: ignore[call-arg]
        web.dependency_overrides[original] = lambda request: request.headers["x-name"]
        web.dependency_overrides[original].__annotations__["request"] = Request
        assert await (await call.enqueue()).result(5) == "Ada"  # type: ignore[call-arg]


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


async def test_a_failed_task_leaves_nothing_behind(celery: Celery) -> None:
    """Its frames, and with them its session, go with it, and not at some later collection."""

    async def get() -> AsyncIterator[Session]:
        session = Session()
        alive.add(session)
        yield session

    @celery.task
    async def fails(session: Annotated[Session, Depends(get)]) -> None:
        raise ValueError("bad row")

    alive: weakref.WeakSet[Session] = weakref.WeakSet()
    gc.disable()
    logging.disable()  # pytest keeps what is logged, and its exceptions
    try:
        async with working(celery):
            for _ in range(5):
                with contextlib.suppress(ValueError):
                    await (await fails.enqueue()).result(5)  # type: ignore[call-arg]
            async with asyncio.timeout(2):
                while alive:
                    await asyncio.sleep(0.01)
    finally:
        logging.disable(logging.NOTSET)
        gc.enable()
