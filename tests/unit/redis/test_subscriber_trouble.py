"""A connection that was lost comes back by itself, and says when something may have been missed."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest
from tests.services import Proxy, RedisServer
from tests.unit.redis.conftest import AT_ONCE, PATIENCE, Inbox, leave, no_stalls, publish, server_at, until

from celeriac.errors import BrokerUnavailable
from celeriac.redis import subscriber as module
from celeriac.redis.subscriber import Subscriber


async def test_a_server_that_is_gone_is_told_at_once(
    redis_server: RedisServer, subscriber: Subscriber
) -> None:
    await asyncio.to_thread(redis_server.stop)
    started = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{redis_server.port} cannot be reached") as caught:
        await subscriber.listen("news", Inbox())
    assert time.monotonic() - started < AT_ONCE
    assert not caught.value.permanent
    await asyncio.to_thread(redis_server.start)
    inbox = Inbox()
    await subscriber.listen("news", inbox)
    await publish(redis_server, "news", "back")
    assert await inbox.next() == b"back"


async def test_a_silent_server_is_told_in_time(redis_server: RedisServer, subscriber: Subscriber) -> None:
    redis_server.pause()
    started = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        await subscriber.listen("news", Inbox())
    assert time.monotonic() - started < 3.5 * PATIENCE
    redis_server.resume()
    await subscriber.listen("news", Inbox())


async def test_a_wrong_password_is_permanent_and_leaves_no_attempts() -> None:
    with RedisServer(password="right") as server:
        subscriber = Subscriber(server_at(server.url_for(password="wrong")))
        with pytest.raises(BrokerUnavailable) as caught:
            await subscriber.listen("news", Inbox())
        assert caught.value.permanent
        await leave(subscriber)


async def test_a_missing_right_is_told() -> None:
    with RedisServer(users={"ann": "on >secret ~* &news +@all"}) as server:
        subscriber = Subscriber(server_at(server.url_for("ann", "secret")))
        inbox = Inbox()
        await subscriber.listen("news", inbox)
        with pytest.raises(BrokerUnavailable, match="does not allow") as caught:
            await asyncio.wait_for(subscriber.listen("other", Inbox()), 2)
        assert caught.value.permanent
        await until(lambda: server.command("PUBSUB", "NUMSUB", "news")[1] == 1)
        await publish(server, "news", "still heard")
        assert await inbox.next() == b"still heard"
        await leave(subscriber)


async def test_giving_up_leaves_nothing(redis_server: RedisServer, subscriber: Subscriber) -> None:
    tasks = asyncio.all_tasks()
    redis_server.pause()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(subscriber.listen("news", Inbox()), 0.05)
    redis_server.resume()
    await until(lambda: not redis_server.connections())
    async with asyncio.timeout(5):
        while asyncio.all_tasks() != tasks:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("way", ["disconnect", "restart", "kill"])
async def test_a_lost_connection_comes_back_and_tells_the_gap(
    redis_server: RedisServer, subscriber: Subscriber, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "celeriac.redis")
    inbox, other, gap = Inbox(), Inbox(), Inbox()
    await subscriber.listen("news", inbox)
    await subscriber.listen("other", other)
    subscriber.on_gap(gap)
    if way == "disconnect":
        assert await asyncio.to_thread(redis_server.disconnect, "pubsub") == 1
    elif way == "restart":
        await asyncio.to_thread(redis_server.restart)
    else:
        await asyncio.to_thread(redis_server.kill)
        await asyncio.sleep(0.2)
        await asyncio.to_thread(redis_server.start)
    await gap.next()
    assert (
        await publish(redis_server, "news", "back") == 1
    )  # when the gap is told, both channels are heard again
    assert await publish(redis_server, "other", "too") == 1
    assert (await inbox.next(), await other.next()) == (b"back", b"too")
    assert len(gap) == 0
    assert "Messages cannot be heard" in caplog.text


async def test_the_gap_is_told_only_when_everything_is_heard_again(
    proxy: Proxy, remote_subscriber: Subscriber, redis_server: RedisServer
) -> None:
    """Whoever then looks up what it has missed cannot miss what happens after the look."""
    inbox = Inbox()
    looks: list[asyncio.Task[int]] = []
    gap = asyncio.Event()

    def look() -> None:
        looks.extend(
            asyncio.create_task(publish(redis_server, channel, "heard")) for channel in ("news", "other")
        )
        gap.set()

    await remote_subscriber.listen("news", inbox)
    await remote_subscriber.listen("other", inbox)
    remote_subscriber.on_gap(look)
    proxy.delay = 0.1
    proxy.cut()
    await asyncio.wait_for(gap.wait(), 5)
    assert await asyncio.gather(*looks) == [1, 1]
    assert [await inbox.next(), await inbox.next()] == [b"heard", b"heard"]


async def test_a_gap_callback_that_is_stopped_is_not_called(
    redis_server: RedisServer, subscriber: Subscriber
) -> None:
    first, second = Inbox(), Inbox()
    await subscriber.listen("news", Inbox())
    stop = subscriber.on_gap(first)
    subscriber.on_gap(second)
    stop()
    stop()  # twice does no harm
    await asyncio.to_thread(redis_server.disconnect, "pubsub")
    await second.next()
    assert len(first) == 0


async def test_a_gap_callback_that_fails_does_not_harm_the_others(
    redis_server: RedisServer, subscriber: Subscriber, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ValueError("not today")

    inbox, gap = Inbox(), Inbox()
    await subscriber.listen("news", inbox)
    subscriber.on_gap(fail)
    subscriber.on_gap(gap)
    await asyncio.to_thread(redis_server.disconnect, "pubsub")
    await gap.next()
    await publish(redis_server, "news", "back")
    assert await inbox.next() == b"back"
    assert len(gap) == 0
    assert "not today" in caplog.text


async def test_no_gap_is_told_of_a_connection_that_was_closed_on_purpose(
    redis_server: RedisServer, subscriber: Subscriber
) -> None:
    gap = Inbox()
    subscriber.on_gap(gap)
    for _ in range(2):
        stop = await subscriber.listen("news", Inbox())
        stop()
        await until(lambda: not redis_server.connections())
    assert len(gap) == 0


async def test_a_network_that_went_silent_is_noticed_and_told(
    proxy: Proxy, remote_subscriber: Subscriber, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_QUIET", 0.1)
    inbox, gap = Inbox(), Inbox()
    await remote_subscriber.listen("news", inbox)
    remote_subscriber.on_gap(gap)
    proxy.blackhole()
    await publish(redis_server, "news", "lost")
    await asyncio.sleep(2 * PATIENCE)
    await proxy.heal()
    await gap.next()
    await publish(redis_server, "news", "back")
    assert await inbox.next() == b"back"


async def test_who_listens_on_a_dead_connection_is_served_by_the_next(
    proxy: Proxy, remote_subscriber: Subscriber, redis_server: RedisServer
) -> None:
    await remote_subscriber.listen("news", Inbox())
    proxy.blackhole()
    started = time.monotonic()
    # Again and again, so that the server always owes an answer to somebody who has just come.
    listening = []
    for number in range(4):
        listening.append(asyncio.create_task(remote_subscriber.listen(f"other-{number}", inbox := Inbox())))
        await asyncio.sleep(PATIENCE / 5)
    await proxy.heal()
    await asyncio.gather(*listening)
    assert time.monotonic() - started < 2 * PATIENCE
    await publish(redis_server, "other-3", "heard")
    assert await inbox.next() == b"heard"


async def test_silence_alone_is_no_trouble(
    proxy: Proxy, remote_subscriber: Subscriber, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_QUIET", 0.05)
    inbox = Inbox()
    await remote_subscriber.listen("news", inbox)
    await asyncio.sleep(0.3)
    await publish(redis_server, "news", "heard")
    assert await inbox.next() == b"heard"
    assert proxy.accepted == 1


async def test_hundreds_of_lost_connections_leave_nothing(
    proxy: Proxy, remote_subscriber: Subscriber, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BACKOFF", (0.0, 0.01))
    gap, inbox = Inbox(), Inbox()
    await remote_subscriber.listen("news", inbox)
    remote_subscriber.on_gap(gap)
    tasks = len(asyncio.all_tasks())
    for _ in range(300):
        proxy.cut()
        await gap.next()
    await publish(redis_server, "news", "back")
    assert await inbox.next() == b"back"
    assert len(asyncio.all_tasks()) == tasks
    assert proxy.open_connections == 1
    await until(lambda: len(redis_server.connections()) == 1)


async def test_an_outage_never_stalls_the_loop(redis_server: RedisServer, subscriber: Subscriber) -> None:
    gap = Inbox()
    await asyncio.gather(*(subscriber.listen(f"task-{number}", Inbox()) for number in range(2_000)))
    subscriber.on_gap(gap)
    async with no_stalls(0.15):
        await asyncio.to_thread(redis_server.kill)
        await asyncio.sleep(0.2)
        await asyncio.to_thread(redis_server.start)
        await gap.next()
