"""One connection for everybody: what is sent together travels together, and is answered in order."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import weakref
from typing import Any

import pytest
import redis
from redis import exceptions
from tests.services import Proxy, RedisServer
from tests.unit.redis.conftest import OpenLink, no_stalls, server_at, until

from celeriac.errors import BrokerUnavailable
from celeriac.redis.link import Link
from celeriac.redis.scripts import Script


def script(text: str) -> Script:
    """A script as it would be in a file."""
    return Script("test.lua", text, hashlib.sha1(text.encode()).hexdigest())


def commands_read(admin: redis.Redis) -> int:
    """How many times the server has read from a connection, without the question itself."""
    return int(admin.info("stats")["total_reads_processed"]) - 1


async def test_what_is_sent_in_one_tick_is_one_write(redis_server: RedisServer, link: Link) -> None:
    await link.send("PING")
    with redis_server.admin() as admin:
        before = commands_read(admin)
        replies = await asyncio.gather(*(link.send("INCR", "counter") for _ in range(200)))
        assert commands_read(admin) - before - 1 == 1
    assert replies == list(range(1, 201))


async def test_tasks_that_send_in_the_same_tick_share_the_write(
    redis_server: RedisServer, link: Link
) -> None:
    await link.send("PING")

    async def caller(number: int) -> Any:
        return await link.send("ECHO", number)

    with redis_server.admin() as admin:
        before = commands_read(admin)
        replies = await asyncio.gather(*(caller(number) for number in range(100)))
        assert commands_read(admin) - before - 1 == 1
    assert replies == [b"%d" % number for number in range(100)]


async def test_many_batches_are_under_way_at_once(proxy: Proxy, remote: Link) -> None:
    await remote.send("PING")
    proxy.delay = 0.1
    started = asyncio.get_running_loop().time()
    sent: list[asyncio.Future[Any]] = []
    for number in range(100):
        sent.append(remote.send("ECHO", number))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    assert remote.pending == 100
    assert await asyncio.gather(*sent) == [b"%d" % number for number in range(100)]
    assert asyncio.get_running_loop().time() - started < 0.3  # one after the other it would be 20 s
    assert remote.pending == 0


async def test_replies_of_any_size_and_kind_come_in_order(link: Link) -> None:
    sizes = [0, 1, 100_000, 7, 3_000_000, 65_536, 0]
    sent = [link.send("ECHO", b"x" * size) for size in sizes]
    missing = link.send("GET", "nothing")
    number = link.send("INCR", "counter")
    wrong = link.send("NO-SUCH-COMMAND")
    nested = link.send("EVAL", "return {1, {'two', {3}}, false}", 0)
    last = link.send("ECHO", "last")
    assert [len(await reply) for reply in sent] == sizes
    assert await missing is None
    assert await number == 1
    with pytest.raises(BrokerUnavailable):
        await wrong
    assert await nested == [1, [b"two", [3]], None]
    assert await last == b"last"


async def test_texts_bytes_and_numbers_are_sent_as_they_are(link: Link) -> None:
    for value, kept in [
        ("naïve", "naïve".encode()),
        (b"\x00\xff\r\n", b"\x00\xff\r\n"),
        (5, b"5"),
        (1.5, b"1.5"),
    ]:
        await link.send("SET", "key", value)
        assert await link.send("GET", "key") == kept


async def test_what_cannot_be_sent_hurts_only_its_sender(link: Link) -> None:
    before, wrong, after = link.send("ECHO", 1), link.send("ECHO", object()), link.send("ECHO", 2)
    assert await before == b"1"
    with pytest.raises((TypeError, exceptions.DataError)):
        await wrong
    assert await after == b"2"


async def test_users_of_one_loop_share_one_connection(redis_server: RedisServer) -> None:
    first, second = Link.shared(server_at(redis_server.url)), Link.shared(server_at(redis_server.url))
    await first.open()
    await second.open()
    assert await asyncio.gather(first.send("PING"), second.send("PING")) == [b"PONG", b"PONG"]
    assert len(redis_server.connections()) == 1
    await first.close()
    assert await second.send("PING") == b"PONG"
    await second.close()
    await until(lambda: not redis_server.connections())


def test_each_loop_has_its_own_and_leaves_nothing(redis_server: RedisServer) -> None:
    async def use() -> weakref.ref[Link]:
        link = Link.shared(server_at(redis_server.url))
        await link.open()
        assert await link.send("PING") == b"PONG"
        await link.close()
        return weakref.ref(link)

    links = [asyncio.run(use()) for _ in range(3)]
    gc.collect()
    assert [link() for link in links] == [None, None, None]
    assert redis_server.connections() == []


async def test_a_script_is_taught_once_and_then_known(redis_server: RedisServer, link: Link) -> None:
    add = script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    assert await link.run(add, ["counter"], [5]) == 5
    assert await link.run(add, ["counter"], [5]) == 10
    with redis_server.admin() as admin:
        calls = admin.info("commandstats")
    assert (calls["cmdstat_evalsha"]["calls"], calls["cmdstat_eval"]["calls"]) == (2, 1)


async def test_a_server_that_has_forgotten_its_scripts_is_taught_again(
    redis_server: RedisServer, link: Link
) -> None:
    add = script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    await link.run(add, ["counter"], [1])
    redis_server.command("SCRIPT", "FLUSH")
    assert await link.run(add, ["counter"], [1]) == 2
    await asyncio.to_thread(redis_server.restart)
    assert await link.run(add, ["counter"], [1]) == 1


async def test_scripts_and_commands_of_one_tick_are_one_write(redis_server: RedisServer, link: Link) -> None:
    add = script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    await link.run(add, ["counter"], [0])
    with redis_server.admin() as admin:
        before = commands_read(admin)
        sent = [
            link.start(add, ["counter"], [1]),
            link.send("INCR", "counter"),
            link.start(add, ["counter"], [1]),
        ]
        assert await asyncio.gather(*sent) == [1, 2, 3]
        assert commands_read(admin) - before - 1 == 1


async def test_a_script_that_fails_says_why(link: Link) -> None:
    with pytest.raises(BrokerUnavailable, match="no such thing"):
        await link.run(script("return redis.error_reply('ERR no such thing')"))
    await link.send("SET", "key", "text")
    with pytest.raises(BrokerUnavailable, match="wrong kind of value") as caught:
        await link.run(script("return redis.call('LPUSH', KEYS[1], 1)"), ["key"])
    assert caught.value.permanent


async def test_a_script_that_was_given_up_is_not_sent(redis_server: RedisServer, link: Link) -> None:
    await link.send("PING")
    link.start(script("return redis.call('INCR', KEYS[1])"), ["counter"]).cancel()
    assert await link.send("GET", "counter") is None
    assert await link.send("GET", "counter") is None


async def test_what_is_cancelled_in_its_tick_is_never_written(link: Link) -> None:
    await link.send("PING")
    sent = [link.send("INCR", "counter") for _ in range(10)]
    for future in sent[::2]:
        future.cancel()
    assert [await future for future in sent[1::2]] == [1, 2, 3, 4, 5]
    assert await link.send("GET", "counter") == b"5"


async def test_what_is_given_up_while_there_is_no_connection_is_never_written(
    redis_server: RedisServer, open_link: OpenLink
) -> None:
    await asyncio.to_thread(redis_server.pause)
    # Another database: the connection is there only when the server has changed to it.
    link = await open_link(redis_server.url_for(db=1), socket_connect_timeout=5, socket_timeout=5)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(link.send("INCR", "counter"), 0.05)
    kept = link.send("INCR", "other")
    redis_server.resume()
    assert await kept == 1
    assert await link.send("GET", "counter") is None


async def test_what_is_cancelled_after_it_was_written_leaves_the_others_in_order(
    proxy: Proxy, remote: Link
) -> None:
    await remote.send("PING")
    proxy.delay = 0.02
    sent = [remote.send("ECHO", number) for number in range(10)]
    await asyncio.sleep(0.01)
    for future in sent[::2]:
        future.cancel()
    assert [await future for future in sent[1::2]] == [b"1", b"3", b"5", b"7", b"9"]
    assert await remote.send("ECHO", "last") == b"last"


async def test_a_link_that_is_not_open_says_so(redis_server: RedisServer) -> None:
    link = Link(server_at(redis_server.url))
    with pytest.raises(BrokerUnavailable, match=f"{redis_server.port} is not open"):
        await link.send("PING")


async def test_opening_needs_no_server(redis_server: RedisServer, open_link: OpenLink) -> None:
    await asyncio.to_thread(redis_server.stop)
    link = await open_link(redis_server.url)
    with pytest.raises(BrokerUnavailable):
        await link.send("PING")
    await asyncio.to_thread(redis_server.start)
    assert await link.send("PING") == b"PONG"


async def test_closing_fails_what_is_unanswered_and_leaves_no_task(proxy: Proxy) -> None:
    tasks = asyncio.all_tasks()
    link = Link(server_at(f"redis://{proxy.host}:{proxy.port}"))
    await link.open()
    await link.send("PING")
    proxy.blackhole()
    written = link.send("PING")
    await asyncio.sleep(0.01)
    unwritten = link.send("PING")
    await link.close()
    for future in (written, unwritten):
        with pytest.raises(BrokerUnavailable, match="was closed"):
            await future
    await until(lambda: proxy.open_connections == 0)
    assert asyncio.all_tasks() - tasks == set()


async def test_closing_does_not_wait_for_a_server_that_is_silent(redis_server: RedisServer) -> None:
    link = Link(server_at(redis_server.url, socket_timeout=30, socket_connect_timeout=30))
    await link.open()
    await asyncio.to_thread(redis_server.pause)
    waiting = link.send("PING")
    await asyncio.sleep(0.01)
    async with asyncio.timeout(0.5):
        await link.close()
    with pytest.raises(BrokerUnavailable, match="was closed"):
        await waiting


async def test_a_link_can_be_opened_again_even_while_it_closes(link: Link) -> None:
    await link.send("PING")
    closing = asyncio.create_task(link.close())
    await asyncio.sleep(0)
    await link.open()
    assert await link.send("PING") == b"PONG"
    await closing
    assert await link.send("PING") == b"PONG"


async def test_a_flood_does_not_stall_the_loop(link: Link) -> None:
    await link.send("PING")
    async with no_stalls(0.3):
        for _ in range(20):
            await asyncio.gather(*(link.send("LPUSH", "list", b"x" * 500) for _ in range(1_000)))
    assert await link.send("LLEN", "list") == 20_000


async def test_a_large_command_does_not_stall_the_loop(link: Link) -> None:
    async with no_stalls(0.3):
        await link.send("SET", "key", b"x" * 10_000_000)
        assert len(await link.send("GET", "key")) == 10_000_000
