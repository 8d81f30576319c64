"""Whose the tasks are that a request enqueues, over sockets and in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx
import pytest
from celery import chain
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Header, WebSocket
from starlette.testclient import TestClient

from celeriac import Celery, propagation


async def user(x_user: Annotated[str | None, Header()] = None) -> str | None:
    return x_user


def threaded_user(x_user: Annotated[str | None, Header()] = None) -> str | None:
    return x_user


ANN = {"X-User": "ann"}


async def owner_of(celery: Celery, task_id: str) -> str | None:
    return (await celery.store.get([task_id]))[task_id].owner


def app_with(celery: Celery, **options: Any) -> FastAPI:
    """An app whose route enqueues one task."""
    app = FastAPI(**options)

    @app.post("/")
    async def enqueue() -> str:
        return (await celery.tasks["shop.add"].enqueue(1, 2)).id

    return app


@pytest.mark.parametrize("dependency", [user, threaded_user, Depends(user), Depends(user, scope="function")])
async def test_what_a_request_enqueues_is_its_callers(client: Any, celery: Celery, dependency: Any) -> None:
    http = client(app_with(celery, dependencies=[celery.owned_by(dependency)]))

    ann = (await http.post("/", headers=ANN)).json()
    nobody = (await http.post("/")).json()

    assert await owner_of(celery, ann) == "ann"
    assert await owner_of(celery, nobody) is None
    assert propagation.owner.get() is None  # the requests ran in this very context


async def test_every_way_to_enqueue_records_the_caller(client: Any, celery: Celery) -> None:
    add = celery.tasks["shop.add"]
    app = FastAPI(dependencies=[celery.owned_by(user)])

    @app.post("/")
    async def enqueue() -> list[str]:
        handles = [
            await celery.enqueue("shop.add", [1, 2]),
            *await celery.enqueue_many([add.s(1, 2)]),
            await celery.enqueue(chain(add.s(1, 2), add.s(3))),
        ]
        return [handle.id for handle in handles]

    @app.post("/threaded")
    def threaded() -> list[str]:
        return [add.delay(1, 2).id]

    http = client(app)
    ids = [*(await http.post("/", headers=ANN)).json(), *(await http.post("/threaded", headers=ANN)).json()]

    assert [await owner_of(celery, each) for each in ids] == ["ann"] * 4


async def test_an_owner_that_is_said_wins(client: Any, celery: Celery) -> None:
    app = FastAPI(dependencies=[celery.owned_by(user)])

    @app.post("/{owner}")
    async def enqueue(owner: str) -> str:
        named = celery.tasks["shop.add"].using(owner=None if owner == "none" else owner)
        return (await named.enqueue(1, 2)).id

    http = client(app)

    assert await owner_of(celery, (await http.post("/bob", headers=ANN)).json()) == "bob"
    assert await owner_of(celery, (await http.post("/none", headers=ANN)).json()) is None


async def test_a_router_and_a_route_may_have_it(client: Any, celery: Celery) -> None:
    add = celery.tasks["shop.add"]
    router = APIRouter(dependencies=[celery.owned_by(user)])
    app = FastAPI()

    async def enqueue() -> str:
        return (await add.enqueue(1, 2)).id

    router.post("/router")(enqueue)
    app.post("/route", dependencies=[celery.owned_by(user)])(enqueue)
    app.post("/other")(enqueue)
    app.include_router(router)
    http = client(app)

    owners = [
        await owner_of(celery, (await http.post(path, headers=ANN)).json())
        for path in ("/router", "/route", "/other")
    ]
    assert owners == ["ann", "ann", None]


async def test_an_exposed_task_is_the_callers_too(client: Any, celery: Celery) -> None:
    router = celery.router(insecure=True)
    router.expose(celery.tasks["shop.add"], "/sums")
    app = FastAPI(dependencies=[celery.owned_by(user)])
    app.include_router(router, prefix="/tasks")

    answer = await client(app).post("/tasks/sums", json={"x": 1, "y": 2}, headers=ANN)

    assert await owner_of(celery, answer.json()["task_id"]) == "ann"


@pytest.mark.parametrize("given", ["", object(), True])
async def test_a_caller_with_no_proper_name_is_an_error(client: Any, celery: Celery, given: Any) -> None:
    with pytest.raises(TypeError, match="owner="):
        await client(app_with(celery, dependencies=[celery.owned_by(lambda: given)])).post("/")


async def test_it_can_be_overridden_like_any_dependency(client: Any, celery: Celery) -> None:
    app = app_with(celery, dependencies=[celery.owned_by(user)])
    app.dependency_overrides[user] = lambda: "bob"

    assert await owner_of(celery, (await client(app).post("/")).json()) == "bob"


def test_a_websocket_has_an_owner(tmp_path: Any) -> None:
    celery = Celery("test", broker=f"memory://{tmp_path.name}", backend=f"memory://{tmp_path.name}")

    @celery.task
    async def add(x: int, y: int) -> int:
        return x + y

    app = FastAPI(lifespan=celery.lifespan, dependencies=[celery.owned_by(user)])

    @app.websocket("/")
    async def enqueue(socket: WebSocket) -> None:
        await socket.accept()
        handle = await add.enqueue(1, 2)
        await socket.send_json(await owner_of(celery, handle.id))
        await socket.close()

    with TestClient(app) as http, http.websocket_connect("/", headers=ANN) as socket:
        assert socket.receive_json() == "ann"


async def test_the_next_request_of_a_connection_is_somebody_elses(serving: Any, celery: Celery) -> None:
    app = app_with(celery)

    @app.post("/mine", dependencies=[celery.owned_by(user)])
    async def mine() -> str:
        return (await celery.tasks["shop.add"].enqueue(1, 2)).id

    async with serving(app) as server:
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(base_url=server.url, limits=limits) as http:
            ids = [
                (await http.post(path, headers=headers)).json()
                for path, headers in (("/mine", ANN), ("/", ANN), ("/mine", {}), ("/mine", {"X-User": "bob"}))
            ]

    assert [await owner_of(celery, each) for each in ids] == ["ann", None, None, "bob"]


async def test_many_at_once_keep_their_own(serving: Any, celery: Celery) -> None:
    async with serving(app_with(celery, dependencies=[celery.owned_by(user)])) as server:
        names = [f"u{number}" for number in range(50)]
        answers = await asyncio.gather(
            *(server.http.post(server.url, headers={"X-User": name}) for name in names)
        )

    assert [await owner_of(celery, each.json()) for each in answers] == names


async def test_a_background_task_of_the_request_is_the_callers(client: Any, celery: Celery) -> None:
    enqueued: list[str] = []
    app = FastAPI(dependencies=[celery.owned_by(user)])

    async def later() -> None:
        enqueued.append((await celery.tasks["shop.add"].enqueue(1, 2)).id)

    @app.post("/")
    async def respond(background: BackgroundTasks) -> None:
        background.add_task(later)

    await client(app).post("/", headers=ANN)

    assert await owner_of(celery, enqueued[0]) == "ann"


async def test_what_runs_beside_the_requests_is_nobodys(serving: Any, tmp_path: Any) -> None:
    """A loop of the app's own that a request wakes, and a worker in the same process."""
    celery = Celery("test", broker=f"sqlite:///{tmp_path}/celery.db")
    wake, woken = asyncio.Event(), asyncio.Queue[str]()

    @celery.task
    async def child() -> None: ...

    @celery.task
    async def parent() -> str:
        return (await child.enqueue()).id

    async def beside() -> None:
        await wake.wait()
        woken.put_nowait((await child.enqueue()).id)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(beside())
        yield
        await running

    app = FastAPI(lifespan=celery.lifespan_with(lifespan, worker=True))

    @app.post("/", dependencies=[celery.owned_by(user)])
    async def enqueue() -> str:
        wake.set()
        return (await parent.enqueue()).id

    async with serving(app) as server:
        mine = (await server.http.post(server.url, headers=ANN)).json()
        of_task = await celery.handle(mine).result(timeout=20)
        unowned = await parent.enqueue()
        of_nobody = await unowned.result(timeout=20)

        assert await owner_of(celery, await woken.get()) is None
        assert await owner_of(celery, of_task) == "ann"  # it travels with the task
        assert await owner_of(celery, of_nobody) is None
