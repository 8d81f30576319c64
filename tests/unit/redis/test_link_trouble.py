"""A server that is gone, silent, restarting, full or read-only: what callers are told, and when all is well."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from tests.services import Proxy, RedisServer
from tests.unit.redis.conftest import AT_ONCE, PATIENCE, OpenLink, no_stalls

from celeriac.errors import BrokerUnavailable
from celeriac.redis.link import Link


async def failure(link: Link, *command: object) -> BrokerUnavailable:
    """The error of a command that cannot work."""
    with pytest.raises(BrokerUnavailable) as caught:
        await link.send(*(command or ("PING",)))
    return caught.value


async def test_a_restart_between_two_commands_is_not_noticed(redis_server: RedisServer, link: Link) -> None:
    for _ in range(3):
        assert await link.send("PING") == b"PONG"
        await asyncio.to_thread(redis_server.restart)


async def test_a_server_that_is_gone_is_told_at_once_by_host_port_and_cause(
    redis_server: RedisServer, link: Link
) -> None:
    await link.send("PING")
    await asyncio.to_thread(redis_server.kill)
    started = time.monotonic()
    error = await failure(link)
    assert time.monotonic() - started < AT_ONCE
    assert str(error).startswith(f"Redis at 127.0.0.1:{redis_server.port} cannot be reached: ")
    assert "refused" in str(error) or "Connect call failed" in str(error)
    assert not error.permanent
    assert error.__cause__ is not None


async def test_everybody_who_waits_is_told_when_the_server_is_killed(
    redis_server: RedisServer, link: Link
) -> None:
    await link.send("PING")
    redis_server.pause()
    waiting = [link.send("INCR", "counter") for _ in range(100)]
    await asyncio.sleep(0.02)
    redis_server.kill()
    started = time.monotonic()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert time.monotonic() - started < AT_ONCE
    assert all(isinstance(outcome, BrokerUnavailable) for outcome in outcomes)
    assert len(set(map(id, outcomes))) == 100  # each has a traceback of its own


async def test_nothing_is_sent_twice(redis_server: RedisServer, link: Link) -> None:
    """Whether what was in flight arrived is for the caller to find out, who alone knows if twice does harm."""
    await link.send("PING")
    redis_server.pause()
    waiting = link.send("INCR", "counter")
    await failure_of(waiting)
    redis_server.resume()
    assert await link.send("PING") == b"PONG"
    assert int(await link.send("GET", "counter") or 0) <= 1


async def failure_of(waiting: asyncio.Future[object]) -> BrokerUnavailable:
    with pytest.raises(BrokerUnavailable) as caught:
        await waiting
    return caught.value


async def test_a_socket_file_that_is_not_there_is_named(open_link: OpenLink, tmp_path: Path) -> None:
    error = await failure(await open_link(f"unix://{tmp_path}/redis.sock"))
    assert str(error).startswith(f"Redis at {tmp_path}/redis.sock cannot be reached: ")
    assert not error.permanent


async def test_a_host_that_has_no_address_is_named(open_link: OpenLink) -> None:
    link = await open_link("redis://no-such-host.invalid:7000", socket_connect_timeout=5)
    async with no_stalls():
        error = await failure(link)
    assert "no-such-host.invalid:7000 cannot be reached" in str(error)


async def test_a_silent_server_is_given_up_in_time_and_found_again(
    redis_server: RedisServer, link: Link
) -> None:
    await link.send("PING")
    redis_server.pause()
    for _ in range(2):  # on the connection that was there, and then without one
        started = time.monotonic()
        error = await failure(link)
        assert 0.9 * PATIENCE < time.monotonic() - started < 1.7 * PATIENCE
        assert (
            str(error)
            == f"Redis at 127.0.0.1:{redis_server.port} does not answer: nothing came back within 0.5 seconds."
        )
        assert not error.permanent
    redis_server.resume()
    started = time.monotonic()
    assert await link.send("PING") == b"PONG"
    assert time.monotonic() - started < AT_ONCE


async def test_silence_is_counted_from_the_last_reply(redis_server: RedisServer, link: Link) -> None:
    """However busy the connection was before."""
    for _ in range(5):
        await link.send("PING")
        await asyncio.sleep(0.01)
    redis_server.pause()
    started = time.monotonic()
    await failure(link)
    assert time.monotonic() - started < 1.7 * PATIENCE


async def test_a_slow_answer_is_waited_for_while_others_come(proxy: Proxy, remote: Link) -> None:
    """Latency is not silence: each of these replies comes within its time."""
    await remote.send("PING")
    proxy.delay = PATIENCE / 3
    for _ in range(4):
        assert await remote.send("PING") == b"PONG"


async def test_a_large_answer_may_take_its_time(redis_server: RedisServer, open_link: OpenLink) -> None:
    """What comes slowly, through a narrow network, is no silence."""

    async def narrow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_client = writer
        from_server, to_server = await asyncio.open_connection(redis_server.host, redis_server.port)

        async def ask() -> None:
            while data := await reader.read(65536):
                to_server.write(data)
            to_server.close()

        asking = asyncio.create_task(ask())
        while data := await from_server.read(20_000):
            to_client.write(data)
            await asyncio.sleep(PATIENCE / 20 if len(data) == 20_000 else 0)
        await asking
        to_client.close()

    async with await asyncio.start_server(narrow, "127.0.0.1") as listener:
        link = await open_link(f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}/0")
        redis_server.command("SET", "large", "x" * 1_000_000)
        started = time.monotonic()
        assert len(await link.send("GET", "large")) == 1_000_000
        assert time.monotonic() - started > 2 * PATIENCE
        await link.close()
        await link.open()


async def test_a_network_that_swallows_everything_is_left(proxy: Proxy, remote: Link) -> None:
    await remote.send("PING")
    proxy.blackhole()
    started = time.monotonic()
    await failure(remote)
    await failure(remote)
    assert time.monotonic() - started < 3.5 * PATIENCE
    await proxy.heal()
    assert await remote.send("PING") == b"PONG"


async def test_who_comes_after_an_outage_does_not_pay_for_an_attempt_that_began_in_it(
    proxy: Proxy, remote: Link
) -> None:
    proxy.blackhole()
    proxy.hold(b"PING")
    during = remote.send("PING")
    await proxy.holds.wait()  # the greeting has come, and is swallowed
    proxy.let_go()
    await proxy.heal()
    after = remote.send("PING")
    await failure_of(during)
    assert await after == b"PONG"


async def test_a_lost_reply_does_not_become_the_reply_of_another(proxy: Proxy, remote: Link) -> None:
    await remote.send("PING")
    proxy.blackhole(requests=False)
    lost = remote.send("ECHO", "first")
    await asyncio.sleep(0.02)
    await proxy.heal()
    after = remote.send("ECHO", "second")
    for future in (lost, after):
        await failure_of(future)
    assert await remote.send("ECHO", "third") == b"third"


async def test_a_silent_server_that_is_sent_much_is_given_up_too(
    redis_server: RedisServer, link: Link
) -> None:
    """More than the kernel buffers, so that not even writing ends."""
    await link.send("PING")
    redis_server.pause()
    started = time.monotonic()
    async with no_stalls(0.2):
        outcomes = await asyncio.gather(
            *(link.send("SET", "key", b"x" * 1_000_000) for _ in range(20)), return_exceptions=True
        )
    assert time.monotonic() - started < 2.5 * PATIENCE
    assert all(isinstance(outcome, BrokerUnavailable) for outcome in outcomes)
    redis_server.resume()
    assert await link.send("PING") == b"PONG"


async def test_a_cut_connection_fails_what_was_in_flight_and_nothing_after(
    proxy: Proxy, remote: Link
) -> None:
    await remote.send("PING")
    proxy.delay = 5
    waiting = remote.send("PING")
    await asyncio.sleep(0.01)
    proxy.cut()
    started = time.monotonic()
    error = await failure_of(waiting)
    assert time.monotonic() - started < AT_ONCE
    assert str(proxy.port) in str(error)
    proxy.delay = 0
    assert await remote.send("PING") == b"PONG"
    assert proxy.open_connections == 1


async def test_a_connection_that_an_administrator_closed_is_replaced(
    redis_server: RedisServer, link: Link
) -> None:
    for _ in range(3):
        assert await link.send("PING") == b"PONG"
        assert await asyncio.to_thread(redis_server.disconnect) == 1


@pytest.mark.parametrize("way", ["command", "script"])
async def test_a_full_server_is_told_and_forgiven(redis_server: RedisServer, link: Link, way: str) -> None:
    redis_server.limit_memory()
    command = (
        ("SET", "key", "value") if way == "command" else ("EVAL", "redis.call('SET', KEYS[1], '')", 1, "key")
    )
    error = await failure(link, *command)
    assert f"Redis at 127.0.0.1:{redis_server.port} is out of memory" in str(error)
    assert "maxmemory" in str(error)
    assert error.why == "Redis is out of memory."
    assert not error.permanent
    assert await link.send("GET", "key") is None
    redis_server.limit_memory(0)
    await link.send(*command)


@pytest.mark.parametrize("way", ["command", "script"])
async def test_a_replica_is_told_and_left(redis_server: RedisServer, link: Link, way: str) -> None:
    redis_server.follow()
    command = (
        ("SET", "key", "value") if way == "command" else ("EVAL", "redis.call('SET', KEYS[1], '')", 1, "key")
    )
    error = await failure(link, *command)
    assert "is a read-only replica" in str(error)
    assert not error.permanent
    redis_server.lead()
    await link.send(*command)


async def test_a_loading_server_is_told_and_waited_for(redis_server: RedisServer, link: Link) -> None:
    def load() -> None:
        loading.__enter__()

    loading = redis_server.loading()
    await asyncio.to_thread(load)
    for _ in range(2):
        error = await failure(link, "GET", "key")
        assert "is loading its data" in str(error)
        assert not error.permanent
    await asyncio.to_thread(loading.__exit__, None, None, None)
    assert await link.send("GET", "key") is None


async def test_a_server_without_enough_replicas_is_told(redis_server: RedisServer, link: Link) -> None:
    redis_server.command("CONFIG", "SET", "min-replicas-to-write", 1)
    error = await failure(link, "SET", "key", "value")
    assert "min-replicas-to-write" in str(error)
    assert not error.permanent
    assert await link.send("GET", "key") is None


async def test_a_server_whose_disk_fails_is_told(open_link: OpenLink) -> None:
    with RedisServer(settings={"enable-protected-configs": "yes"}) as server:
        link = await open_link(server.url)
        with server.admin() as admin:
            admin.config_set("save", "3600 1")
            admin.config_set("dbfilename", "x" * 300)  # longer than a file's name can be
            admin.bgsave()
            while admin.info("persistence")["rdb_bgsave_in_progress"]:
                await asyncio.sleep(0.005)
        error = await failure(link, "SET", "key", "value")
    assert "cannot save to its disk" in str(error)
    assert not error.permanent


async def test_a_server_busy_with_a_script_is_told(redis_server: RedisServer, open_link: OpenLink) -> None:
    redis_server.command("CONFIG", "SET", "lua-time-limit", 10)
    busy, link = await open_link(redis_server.url, socket_timeout=5), await open_link(redis_server.url)
    await link.send("PING")
    endless = busy.send("EVAL", "while true do end", 0)
    await asyncio.sleep(0.05)
    error = await failure(link)
    assert "is busy with a script" in str(error)
    assert not error.permanent
    await asyncio.to_thread(redis_server.command, "SCRIPT", "KILL")
    await failure_of(endless)
    assert await link.send("PING") == b"PONG"


async def test_a_server_with_too_many_clients_is_told(redis_server: RedisServer, link: Link) -> None:
    with redis_server.admin() as admin:
        admin.config_set("maxclients", 1)
        error = await failure(link)
        assert "max number of clients" in str(error)
        assert not error.permanent
        admin.config_set("maxclients", 100)
    assert await link.send("PING") == b"PONG"


async def test_a_wrong_password_is_permanent(open_link: OpenLink) -> None:
    with RedisServer(password="right") as server:
        error = await failure(await open_link(server.url_for(password="wrong")))
        assert "does not accept the user or the password" in str(error)
        assert "wrong" not in str(error).replace("wrongpass", "")
        assert error.permanent


async def test_a_missing_password_is_permanent_and_told_apart(open_link: OpenLink) -> None:
    with RedisServer(password="right") as server:
        error = await failure(await open_link(f"redis://{server.host}:{server.port}"))
        assert "wants a password" in str(error)
        assert error.permanent


async def test_a_password_that_nobody_asked_for_is_permanent(
    redis_server: RedisServer, open_link: OpenLink
) -> None:
    error = await failure(await open_link(redis_server.url_for("nobody", "secret")))
    assert error.permanent


async def test_a_missing_right_is_permanent_and_hurts_only_its_command(open_link: OpenLink) -> None:
    with RedisServer(users={"ann": "on >secret ~queue +@read +ping"}) as server:
        link = await open_link(server.url_for("ann", "secret"))
        right, wrong, key = link.send("PING"), link.send("SET", "queue", "1"), link.send("GET", "other")
        assert await right == b"PONG"
        for future in (wrong, key):
            error = await failure_of(future)
            assert "does not allow its user" in str(error)
            assert "NOPERM" in str(error) or "permissions" in str(error).lower()
            assert error.permanent
        assert len(server.connections()) == 1


async def test_an_unknown_command_is_permanent(link: Link) -> None:
    error = await failure(link, "CELERIAC")
    assert "unknown command" in str(error)
    assert "Redis 6.2" in str(error)
    assert error.permanent


async def test_a_key_that_somebody_else_uses_is_permanent(link: Link) -> None:
    await link.send("SET", "key", "text")
    error = await failure(link, "LPUSH", "key", "value")
    assert "keeps something else under a key" in str(error)
    assert error.permanent


async def test_a_database_that_is_not_there_is_named(redis_server: RedisServer, open_link: OpenLink) -> None:
    error = await failure(await open_link(redis_server.url_for(db=99)))
    assert "DB index is out of range" in str(error)


async def test_a_server_that_is_no_redis_is_told(open_link: OpenLink) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        link = await open_link(f"redis://127.0.0.1:{port}")
        assert f"Redis at 127.0.0.1:{port}" in str(await failure(link))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux does")
async def test_a_thousand_failures_leave_nothing(redis_server: RedisServer, link: Link) -> None:
    await failure(link, "CELERIAC")
    await asyncio.to_thread(redis_server.kill)
    await failure(link)
    files, tasks = open_files(), len(asyncio.all_tasks())
    for _ in range(1_000):
        await failure(link)
    assert open_files() <= files
    assert len(asyncio.all_tasks()) == tasks
    await asyncio.to_thread(redis_server.start)
    assert await link.send("PING") == b"PONG"
    assert len(redis_server.connections()) == 1


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux does")
async def test_a_thousand_cut_connections_leave_nothing(
    proxy: Proxy, remote: Link, redis_server: RedisServer
) -> None:
    await remote.send("PING")
    files, tasks = open_files(), len(asyncio.all_tasks())
    for _ in range(1_000):
        waiting = remote.send("PING")
        proxy.cut()
        await asyncio.wait([waiting])
    assert await remote.send("PING") == b"PONG"
    assert open_files() <= files
    assert len(asyncio.all_tasks()) == tasks
    assert len(redis_server.connections()) == 1


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux does")
async def test_refused_passwords_leave_nothing(open_link: OpenLink) -> None:
    with RedisServer(password="right") as server:
        link = await open_link(server.url_for(password="wrong"))
        await failure(link)
        files = open_files()
        for _ in range(200):
            await failure(link)
        assert open_files() <= files
        assert len(server.connections()) <= 1


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux does")
async def test_a_silent_server_costs_no_connection_that_was_full(
    redis_server: RedisServer, open_link: OpenLink
) -> None:
    """What could not be written must not keep the connection open."""
    link = await open_link(redis_server.url, socket_timeout=0.05, socket_connect_timeout=0.05)
    files = open_files()
    for _ in range(5):
        redis_server.pause()
        await failure(link, "SET", "key", b"x" * 20_000_000)
        await failure(link)
        redis_server.resume()
        await asyncio.sleep(0.05)
    redis_server.pause()
    await failure(link, "SET", "key", b"x" * 20_000_000)
    await asyncio.sleep(0.05)
    assert open_files() <= files
    redis_server.resume()


async def test_trouble_never_stalls_the_loop(redis_server: RedisServer, link: Link) -> None:
    await link.send("PING")
    async with no_stalls(0.1):
        redis_server.pause()
        await failure(link)
        await failure(link)
        redis_server.resume()
        await asyncio.to_thread(redis_server.kill)
        for _ in range(50):
            await failure(link)
        await asyncio.to_thread(redis_server.start)
        await link.send("PING")
