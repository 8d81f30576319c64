from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.parametrize("celery", ["memory", "sqlite", "redis"], indirect=True)


@dataclass
class Event:
    """What a browser's EventSource would see; a comment has a name of ``:``."""

    name: str
    data: Any = None
    id: str | None = None


class Stream:
    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

    async def next(self) -> Event:
        fields: dict[str, str] = {}
        async for line in self._lines:
            if not line and fields:
                data = json.loads(fields["data"]) if "data" in fields else None
                return Event(fields.get("event", ":"), data, fields.get("id"))
            if line:
                name, _, value = line.partition(":")
                fields[name] = value.removeprefix(" ")
        raise StopAsyncIteration

    async def until(self, name: str) -> list[Event]:
        """Everything but comments, up to the first event of this name."""
        seen: list[Event] = []
        while not seen or seen[-1].name != name:
            event = await self.next()
            if event.name != ":":
                seen.append(event)
        return seen

    async def rest(self) -> list[Event]:
        seen = await self.until("end")
        with pytest.raises(StopAsyncIteration):
            await self.next()
        return seen


@asynccontextmanager
async def events(server: Any, task_id: str = "t1", **options: Any) -> AsyncIterator[Stream]:
    async with asyncio.timeout(20):
        async with server.http.stream("GET", f"{server.url}/tasks/{task_id}/events", **options) as response:
            yield Stream(response)


def values(seen: list[Event]) -> list[Any]:
    return [event.data for event in seen if event.name == "value"]


async def test_a_stream_tells_a_tasks_life_as_it_happens_and_ends(server: Any, feed: Any) -> None:
    await feed.enqueued()
    async with events(server) as stream:
        assert stream.response.headers["content-type"].startswith("text/event-stream")
        assert (await stream.next()).data["state"] == "PENDING"

        await feed.state("t1", "STARTED")
        assert (await stream.until("state"))[-1].data["state"] == "STARTED"
        await feed.progressed("t1", '{"current": 1, "total": 2, "note": ""}')
        assert (await stream.until("progress"))[-1].data == {"current": 1, "total": 2, "note": ""}
        await feed.emitted("t1", '{"token": "hé\\nllo"}')
        assert (await stream.until("value"))[-1].data == {"token": "hé\nllo"}
        await feed.succeeded()

        last = await stream.rest()
    assert [event.name for event in last] == ["state", "end"]
    assert last[-1].data == {"state": "SUCCESS"}


async def test_ids_are_those_of_the_store(server: Any, feed: Any) -> None:
    await feed.enqueued()
    await feed.emitted("t1", "1", "2")
    await feed.succeeded()

    async with events(server) as stream:
        seen = await stream.rest()

    assert [event.id for event in seen[:-1]] == [event.id for event in await feed.store.events("t1")]


async def test_a_null_value_reaches_the_browser(server: Any, feed: Any) -> None:
    await feed.enqueued()
    await feed.emitted("t1", "null", '""')
    await feed.succeeded()

    async with events(server) as stream:
        assert values(await stream.rest()) == [None, ""]


async def test_a_client_that_comes_back_misses_and_repeats_nothing(server: Any, feed: Any) -> None:
    await feed.started()
    await feed.emitted("t1", *(str(number) for number in range(5)))
    async with events(server) as stream:
        first = await stream.until("value")
        first += await stream.until("value")
    await feed.emitted("t1", *(str(number) for number in range(5, 250)))
    async with events(server, headers={"Last-Event-ID": first[-1].id}) as stream:
        await feed.emitted("t1", *(str(number) for number in range(250, 300)))
        await feed.succeeded()
        second = await stream.rest()

    assert values(first + second) == list(range(300))


async def test_after_is_for_a_first_connection_and_the_header_goes_before_it(server: Any, feed: Any) -> None:
    await feed.enqueued()
    await feed.emitted("t1", "1", "2", "3")
    await feed.succeeded()
    ids = [event.id for event in await feed.store.events("t1") if event.kind == "value"]

    async with events(server, params={"after": ids[0]}) as stream:
        assert values(await stream.rest()) == [2, 3]
    async with events(server, params={"after": ids[0]}, headers={"Last-Event-ID": ids[1]}) as stream:
        assert values(await stream.rest()) == [3]


async def test_a_client_that_has_seen_it_all_gets_the_end(server: Any, feed: Any) -> None:
    await feed.enqueued()
    await feed.succeeded()
    last = (await feed.store.events("t1"))[-1].id

    async with events(server, headers={"Last-Event-ID": last}) as stream:
        assert await stream.rest() == [Event("end", {"state": "SUCCESS"})]


async def test_a_retried_task_goes_on_in_the_same_stream(server: Any, feed: Any) -> None:
    await feed.started()
    await feed.failed()
    await feed.state("t1", "PENDING", replay=True)
    async with events(server) as stream:
        while (await stream.until("state"))[-1].data["state"] != "FAILURE":
            pass
        assert (await stream.until("state"))[-1].data["state"] == "PENDING"

        await feed.succeeded()

        assert (await stream.rest())[-1].data == {"state": "SUCCESS"}


async def test_a_task_that_is_retried_while_its_stream_opens_is_not_over(
    server: Any, feed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await feed.started()
    await feed.failed()
    last = (await feed.store.events("t1"))[-1].id
    read = feed.store.events

    async def retried_first(*args: Any) -> Any:
        monkeypatch.setattr(feed.store, "events", read)
        await feed.state("t1", "PENDING", replay=True)
        return await read(*args)

    monkeypatch.setattr(feed.store, "events", retried_first)
    async with events(server, headers={"Last-Event-ID": last}) as stream:
        assert (await stream.until("state"))[-1].data["state"] == "PENDING"
        assert (await stream.next()).name == ":"

        await feed.succeeded()

        assert [event.data["state"] for event in await stream.rest()] == ["SUCCESS", "SUCCESS"]


async def test_silence_is_filled_with_comments(server: Any, feed: Any) -> None:
    await feed.started()
    async with events(server) as stream:
        await stream.until("state")
        comments = [event async for event in take(stream, 6) if event.name == ":"]

    assert len(comments) >= 4


async def take(stream: Stream, count: int) -> AsyncIterator[Event]:
    for _ in range(count):
        yield await stream.next()


async def test_an_unknown_id_is_told_before_the_stream_begins(server: Any) -> None:
    async with events(server, "nothing") as stream:
        assert stream.response.status_code == 404
        assert stream.response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("wrong", [{"headers": {"Last-Event-ID": "!"}}, {"params": {"after": "!"}}])
async def test_a_malformed_position_is_told_before_the_stream_begins(
    server: Any, feed: Any, wrong: Any
) -> None:
    await feed.enqueued()

    async with events(server, **wrong) as stream:
        assert stream.response.status_code == 422


async def test_an_empty_position_is_none(server: Any, feed: Any) -> None:
    await feed.enqueued()
    await feed.succeeded()

    async with events(server, headers={"Last-Event-ID": ""}, params={"after": ""}) as stream:
        assert (await stream.next()).data["state"] == "PENDING"


async def test_a_client_that_goes_away_leaves_no_watch(server: Any, feed: Any, watches: Any) -> None:
    await feed.started()
    async with events(server) as stream:
        await stream.next()
        assert watches.open == 1

    async with asyncio.timeout(2):
        await watches.none.wait()


async def test_a_deleted_record_ends_the_stream(server: Any, feed: Any) -> None:
    await feed.started()
    async with events(server) as stream:
        await stream.next()

        await feed.store.forget(["t1"])

        assert (await stream.until("end"))[-1].data == {"state": None}


async def test_a_hundred_streams_see_everything(server: Any, feed: Any, watches: Any) -> None:
    await feed.started()

    async def follow() -> list[Any]:
        async with events(server) as stream:
            return values(await stream.rest())

    following = [asyncio.create_task(follow()) for _ in range(100)]
    await watches.count(100)
    for number in range(20):
        await feed.emitted("t1", str(number))
    await feed.succeeded()

    assert await asyncio.gather(*following) == [list(range(20))] * 100
    async with asyncio.timeout(2):
        await watches.none.wait()
