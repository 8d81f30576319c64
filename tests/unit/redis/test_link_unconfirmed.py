"""Whether a command that failed may have been done: the server may have what was written, and nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.services import Proxy, RedisServer
from tests.unit.redis.conftest import OpenLink, until

from celeriac.errors import BrokerUnavailable
from celeriac.redis.link import Link


async def outcome(future: asyncio.Future[Any]) -> Any:
    """The reply, or whether the error leaves open what has become of it."""
    try:
        return await future
    except BrokerUnavailable as exc:
        return "unconfirmed" if exc.unconfirmed else "not done"


async def test_what_was_written_and_not_answered_may_have_been_done(
    redis_server: RedisServer, proxy: Proxy, remote: Link
) -> None:
    await remote.send("PING")
    proxy.blackhole(requests=False)
    waiting = remote.send("INCR", "counter")
    await until(lambda: redis_server.command("GET", "counter") == "1")
    proxy.cut()
    assert await outcome(waiting) == "unconfirmed"


async def test_so_may_what_a_silent_server_was_sent(redis_server: RedisServer, link: Link) -> None:
    await link.send("PING")
    redis_server.pause()
    assert await outcome(link.send("INCR", "counter")) == "unconfirmed"
    redis_server.resume()


async def test_what_no_connection_was_found_for_has_not_been_done(
    redis_server: RedisServer, link: Link
) -> None:
    await asyncio.to_thread(redis_server.kill)
    assert await outcome(link.send("INCR", "counter")) == "not done"


async def test_what_had_its_reply_before_the_connection_broke_keeps_it(proxy: Proxy, remote: Link) -> None:
    await remote.send("PING")
    sent = [
        remote.send("ECHO", "first"),
        remote.send("LPUSH", "text"),
        remote.send("BLPOP", "nothing", 0),  # keeps those behind it from being done
        remote.send("INCR", "counter"),
    ]
    await asyncio.wait(sent[:2])
    proxy.cut()
    assert [await outcome(each) for each in sent] == [b"first", "not done", "unconfirmed", "unconfirmed"]


async def test_what_waits_for_a_write_that_does_not_end_is_written_to_the_next_connection(
    redis_server: RedisServer, proxy: Proxy, remote: Link
) -> None:
    await remote.send("PING")
    redis_server.pause()
    large = [remote.send("SET", "large", b"x" * 20_000_000)]
    await asyncio.sleep(0)  # the writer has begun
    await asyncio.sleep(0)
    small = remote.send("INCR", "counter")
    large_outcome = asyncio.ensure_future(outcome(large[0]))
    proxy.cut()
    assert await large_outcome == "unconfirmed"
    redis_server.resume()
    assert await small == 1


async def test_each_command_that_a_replica_refuses_is_told_so(redis_server: RedisServer, link: Link) -> None:
    """Those behind the first, too, which the connection is left for."""
    await link.send("SET", "key", "text")
    redis_server.follow()
    sent = [link.send("INCR", "a"), link.send("GET", "key"), link.send("INCR", "b"), link.send("PING")]
    assert [await outcome(each) for each in sent] == ["not done", b"text", "not done", b"PONG"]
    redis_server.lead()
    assert await link.send("INCR", "a") == 1


async def test_a_reply_that_never_came_on_a_link_that_is_closed_leaves_it_open(
    redis_server: RedisServer, open_link: OpenLink
) -> None:
    link = await open_link(redis_server.url)
    await link.send("PING")
    waiting = link.send("BLPOP", "nothing", 0)
    await until(lambda: link.pending)
    unsent = link.send("INCR", "counter")
    await link.close()
    assert [await outcome(waiting), await outcome(unsent)] == ["unconfirmed", "not done"]
    await link.open()
