from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.requests import HTTPConnection
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from celeriac.errors import StoreUnavailable
from celeriac.fastapi import shutdown

pytestmark = pytest.mark.parametrize("celery", ["memory", "sqlite", "redis"], indirect=True)


class Socket:
    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def next(self) -> Any:
        return json.loads(await self.connection.recv())

    async def until(self, name: str) -> list[Any]:
        """Everything but heartbeats, up to the first event of this name."""
        seen: list[Any] = []
        while not seen or seen[-1]["event"] != name:
            message = await self.next()
            if message["event"] != "heartbeat":
                seen.append(message)
        return seen

    async def closed(self) -> int:
        """What it is closed with, now."""
        with pytest.raises(ConnectionClosed):
            await self.next()
        code = self.connection.close_code
        assert code is not None
        return code


@asynccontextmanager
async def socket(server: Any, task_id: str = "t1", query: str = "", **options: Any) -> AsyncIterator[Socket]:
    url = f"ws://127.0.0.1:{server.port}/tasks/{task_id}/ws{query}"
    async with asyncio.timeout(20):
        async with connect(url, **options) as connection:
            yield Socket(connection)


def values(seen: list[Any]) -> list[Any]:
    return [message["data"] for message in seen if message["event"] == "value"]


def app_of(celery: Any, **options: Any) -> FastAPI:
    app = FastAPI(lifespan=celery.lifespan)
    app.include_router(celery.router(**options), prefix="/tasks")
    return app


async def test_it_tells_a_tasks_life_as_it_happens_and_ends(server: Any, feed: Any) -> None:
    await feed.enqueued()
    async with socket(server) as ws:
        first = await ws.next()
        assert (first["event"], first["data"]["state"]) == ("state", "PENDING")

        await feed.state("t1", "STARTED")
        await ws.until("state")
        await feed.emitted("t1", '{"token": "hé\\nllo"}')
        assert (await ws.until("value"))[-1]["data"] == {"token": "hé\nllo"}
        await feed.succeeded()

        last = await ws.until("end")
        assert last[-1] == {"id": None, "event": "end", "data": {"state": "SUCCESS"}}
        assert await ws.closed() == 1000


async def test_ids_are_those_of_the_store(server: Any, feed: Any) -> None:
    await feed.enqueued()
    await feed.emitted("t1", "1", "2")
    await feed.succeeded()

    async with socket(server) as ws:
        seen = await ws.until("end")

    assert [message["id"] for message in seen[:-1]] == [event.id for event in await feed.store.events("t1")]


async def test_after_goes_on_at_every_position_without_loss_or_repeat(server: Any, feed: Any) -> None:
    await feed.enqueued()
    await feed.emitted("t1", *map(str, range(30)))
    await feed.succeeded()
    async with socket(server) as ws:
        everything = await ws.until("end")

    for position, message in enumerate(everything[:-1], 1):
        async with socket(server, query=f"?after={message['id']}") as ws:
            assert await ws.until("end") == everything[position:]


async def test_silence_is_filled_with_heartbeats(server: Any, feed: Any) -> None:
    await feed.enqueued()
    async with socket(server) as ws:
        await ws.until("state")

        assert await ws.next() == {"id": None, "event": "heartbeat", "data": None}


@pytest.mark.parametrize(
    ("task_id", "query", "code"),
    [("nothing", "", 4404), ("old", "", 4410), ("t1", "?after=!", 4422), ("t1", "?after=", 1000)],
)
async def test_what_cannot_be_told_has_a_code(
    server: Any, feed: Any, task_id: str, query: str, code: int
) -> None:
    await feed.state("old", "SUCCESS", at=time.time() - 100_000)
    await feed.store.trim()
    await feed.enqueued()
    await feed.succeeded()

    async with socket(server, task_id, query) as ws:
        if code == 1000:
            await ws.until("end")
        assert await ws.closed() == code


async def test_what_has_expired_has_a_code_of_its_own(server: Any, feed: Any) -> None:
    ended = time.time() - 2 * 86_400.0
    await feed.enqueued(at=ended)
    await feed.state("t1", "SUCCESS", result="3", at=ended)
    assert await feed.store.trim() == 1

    async with socket(server) as ws:
        assert await ws.closed() == 4410
        assert ws.connection.close_reason


async def test_a_store_that_is_away_is_later(server: Any, feed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def get(_ids: Any) -> Any:
        raise StoreUnavailable("connect to db.internal")

    monkeypatch.setattr(feed.store, "get", get)
    async with socket(server) as ws:
        assert await ws.closed() == 1013
        assert "internal" not in (ws.connection.close_reason or "")


async def test_a_client_that_goes_away_leaves_no_watch(server: Any, feed: Any, watches: Any) -> None:
    await feed.started()
    async with socket(server) as ws:
        await ws.next()
        assert watches.open == 1

    async with asyncio.timeout(2):
        await watches.none.wait()


async def test_what_a_client_says_is_not_kept(server: Any, feed: Any) -> None:
    await feed.enqueued()
    async with socket(server) as ws:
        for _ in range(100):
            await ws.connection.send("x" * 10_000)
        await feed.succeeded()

        await ws.until("end")


async def test_a_server_that_stops_says_so(server: Any, feed: Any) -> None:
    await feed.started()
    async with socket(server) as ws:
        while (await ws.until("state"))[-1]["data"]["state"] != "STARTED":
            pass
        event = shutdown.stopping()
        assert event is not None

        event.set()

        assert await ws.closed() == 1001


# -- who may


def by_connection(connection: HTTPConnection) -> str:
    return connection.headers["x-user"]


def by_header(x_user: Annotated[str, Header()]) -> str:
    return x_user


@pytest.mark.parametrize("user", [by_connection, by_header])
async def test_everybody_has_their_own_tasks_alone(celery: Any, feed: Any, serving: Any, user: Any) -> None:
    await feed.enqueued(owner="ann")
    await feed.succeeded()

    async with serving(app_of(celery, owner=Depends(user))) as server:
        async with socket(server, additional_headers={"X-User": "ann"}) as ws:
            await ws.until("end")
        async with socket(server, additional_headers={"X-User": "bob"}) as ws:
            assert await ws.closed() == 4404


async def test_dependencies_of_the_router_turn_away(celery: Any, feed: Any, serving: Any) -> None:
    await feed.enqueued()

    def nobody() -> None:
        raise HTTPException(401)

    async with serving(app_of(celery, dependencies=[Depends(nobody)])) as server:
        with pytest.raises(InvalidStatus) as refused:
            async with socket(server):
                pass

    assert refused.value.response.status_code == 401


def by_request(request: Request) -> str:
    return request.headers["x-user"]


def within(name: Annotated[str, Depends(by_request)]) -> str:
    return name


@pytest.mark.parametrize(
    "options",
    [
        {"owner": Depends(by_request)},
        {"owner": within},
        {"dependencies": [Depends(by_request)]},
    ],
)
async def test_a_dependency_on_a_request_closes_it_with_a_sentence(
    celery: Any, feed: Any, serving: Any, caplog: Any, options: Any
) -> None:
    await feed.enqueued(owner="ann")

    async with serving(app_of(celery, **options)) as server:
        with pytest.raises(InvalidStatus) as refused:
            async with socket(server, additional_headers={"X-User": "ann"}):
                pass
        assert (await server.http.get(f"{server.url}/tasks/t1", headers={"X-User": "ann"})).status_code == 200

    assert refused.value.response.status_code == 501
    assert b"by_request takes a Request" in refused.value.response.body
    assert "HTTPConnection" in caplog.text


async def test_a_page_of_another_site_may_not_use_its_visitors_cookies(
    celery: Any, feed: Any, serving: Any
) -> None:
    await feed.enqueued()
    await feed.succeeded()
    app = app_of(celery, websocket_origins=["https://shop.example"])

    async with serving(app) as server:
        for origin in (f"http://127.0.0.1:{server.port}", "https://shop.example", None):
            async with socket(server, origin=origin) as ws:
                await ws.until("end")
        evil = f"http://127.0.0.1:{server.port}.evil.example"
        for origin in ("https://evil.example", "null", "http://[", evil):
            with pytest.raises(InvalidStatus) as refused:
                async with socket(server, origin=origin):
                    pass
            assert refused.value.response.status_code == 403
