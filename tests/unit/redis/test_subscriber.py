"""One connection hears for everybody on a loop, only while somebody listens."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest
from tests.services import Proxy, RedisServer
from tests.unit.redis.conftest import Inbox, no_stalls, publish, server_at, until

from celeriac.redis.subscriber import Subscriber


async def test_what_is_published_after_listening_is_heard_in_order(
    redis_server: RedisServer, subscriber: Subscriber
) -> None:
    inbox = Inbox()
    await subscriber.listen("news", inbox)
    for number in range(20):
        assert await publish(redis_server, "news", str(number)) == 1
    assert [await inbox.next() for _ in range(20)] == [b"%d" % number for number in range(20)]


async def test_each_callback_of_a_channel_hears_until_it_is_stopped(
    redis_server: RedisServer, subscriber: Subscriber
) -> None:
    first, second = Inbox(), Inbox()
    stop_first = await subscriber.listen("news", first)
    await subscriber.listen("news", second)
    await publish(redis_server, "news", "one")
    assert (await first.next(), await second.next()) == (b"one", b"one")
    stop_first()
    await publish(redis_server, "news", "two")
    assert await second.next() == b"two"
    assert len(first) == 0
    stop_first()  # twice does no harm
    await publish(redis_server, "news", "three")
    assert await second.next() == b"three"


async def test_channels_do_not_hear_each_other(redis_server: RedisServer, subscriber: Subscriber) -> None:
    one, two = Inbox(), Inbox()
    await asyncio.gather(subscriber.listen("one", one), subscriber.listen(b"two\xff", two))
    await publish(redis_server, "one", "for one")
    with redis_server.admin() as admin:
        admin.publish(b"two\xff", "for two")
    assert (await one.next(), await two.next()) == (b"for one", b"for two")
    assert len(one) == len(two) == 0


async def test_a_callback_that_fails_does_not_harm_the_others(
    redis_server: RedisServer, subscriber: Subscriber, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: bytes) -> None:
        raise ValueError("not today")

    inbox = Inbox()
    await subscriber.listen("news", fail)
    await subscriber.listen("news", inbox)
    for message in ("one", "two"):
        await publish(redis_server, "news", message)
        assert await inbox.next() == message.encode()
    assert caplog.text.count("A listener of b'news' failed") == 2


async def test_a_callback_may_stop_itself(redis_server: RedisServer, subscriber: Subscriber) -> None:
    inbox, other = Inbox(), Inbox()

    def once(message: bytes) -> None:
        inbox(message)
        stop()

    stop = await subscriber.listen("news", once)
    await subscriber.listen("news", other)
    await publish(redis_server, "news", "one")
    await publish(redis_server, "news", "two")
    assert [await other.next(), await other.next()] == [b"one", b"two"]
    assert (await inbox.next(), len(inbox)) == (b"one", 0)


async def test_listening_again_right_after_leaving_misses_nothing(
    proxy: Proxy, remote_subscriber: Subscriber, redis_server: RedisServer
) -> None:
    """The confirmation of a wish that was given up confirms no later one."""
    keep, inbox = Inbox(), Inbox()
    await remote_subscriber.listen("other", keep)
    proxy.delay = 0.1
    giving_up = asyncio.create_task(remote_subscriber.listen("news", inbox))
    await asyncio.sleep(0.01)
    giving_up.cancel()
    await asyncio.sleep(0.15)  # until just before its confirmation comes
    await remote_subscriber.listen("news", inbox)
    assert await publish(redis_server, "news", "heard") == 1
    assert await inbox.next() == b"heard"


async def test_a_loop_has_one_connection_only_while_somebody_listens(redis_server: RedisServer) -> None:
    tasks = asyncio.all_tasks()
    stops = [
        await Subscriber.shared(server_at(redis_server.url)).listen(f"news-{number}", Inbox())
        for number in range(5)
    ]
    assert len(redis_server.connections()) == 1
    for stop in stops:
        stop()
    await until(lambda: not redis_server.connections())
    await asyncio.sleep(0.01)
    assert asyncio.all_tasks() == tasks

    inbox = Inbox()
    stop = await Subscriber.shared(server_at(redis_server.url)).listen("news", inbox)
    await publish(redis_server, "news", "again")
    assert await inbox.next() == b"again"
    stop()
    await until(lambda: not redis_server.connections())


async def test_who_comes_while_the_last_one_leaves_is_served(
    redis_server: RedisServer, subscriber: Subscriber
) -> None:
    inbox = Inbox()
    for number in range(20):
        stop = await subscriber.listen("first", Inbox())
        stop()
        for _ in range(number):
            await asyncio.sleep(0)
        stop = await asyncio.wait_for(subscriber.listen("second", inbox), 2)
        await publish(redis_server, "second", str(number))
        assert await inbox.next() == b"%d" % number
        stop()


async def test_ten_thousand_channels_need_one_connection(
    redis_server: RedisServer, subscriber: Subscriber
) -> None:
    heard = 0

    def hear(_: bytes) -> None:
        nonlocal heard
        heard += 1

    async with no_stalls(1.0):
        stops = await asyncio.gather(*(subscriber.listen(f"task-{number}", hear) for number in range(10_000)))
    (connection,) = redis_server.connections()
    assert connection["sub"] == "10000"
    with redis_server.admin() as admin:
        for number in range(0, 10_000, 1_000):
            assert admin.publish(f"task-{number}", "done") == 1
    last = Inbox()
    await subscriber.listen("last", last)
    await publish(redis_server, "last", "last")
    await last.next()
    assert heard == 10
    async with no_stalls(1.0):
        for stop in stops:
            stop()
        await until(lambda: redis_server.connections()[0]["sub"] == "1")


def test_each_loop_has_its_own_and_leaves_nothing(redis_server: RedisServer) -> None:
    async def use() -> weakref.ref[Subscriber]:
        subscriber = Subscriber.shared(server_at(redis_server.url))
        stop = await subscriber.listen("news", Inbox())
        stop()
        await until(lambda: not redis_server.connections())
        return weakref.ref(subscriber)

    subscribers = [asyncio.run(use()) for _ in range(3)]
    gc.collect()
    assert [subscriber() for subscriber in subscribers] == [None, None, None]
