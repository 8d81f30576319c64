"""The servers that tests start do to their clients what they claim to do."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from redis import exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry
from tests.services import (
    Certificates,
    RedisSentinel,
    RedisServer,
    ReservedPort,
    make_certificates,
    missing,
    program,
    running_redis,
)

NEVER = Retry(NoBackoff(), 0)


def connect(url: str, **options: Any) -> redis.Redis:
    """A client that takes the first answer for an answer."""
    return redis.Redis.from_url(url, decode_responses=True, retry=NEVER, **options)


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with connect(redis_server.url, socket_timeout=1) as client:
        yield client


def test_a_missing_program_skips_the_test_and_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUIRE_SERVICES", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(
        pytest.skip.Exception, match="redis-server is not installed: `make services` installs it"
    ):
        RedisServer()
    with pytest.raises(pytest.skip.Exception, match="openssl is not installed"):
        make_certificates(Path())


def test_a_missing_program_fails_the_test_where_services_are_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REQUIRE_SERVICES", "1")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(pytest.fail.Exception, match=r"redis-server is not installed.*REQUIRE_SERVICES=1"):
        RedisServer()


def test_the_second_name_of_a_program_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", {"valkey-server": "/bin/valkey-server"}.get)
    assert program("redis-server", "valkey-server") == "/bin/valkey-server"


def test_missing_takes_any_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUIRE_SERVICES", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no such thing"):
        missing("no such thing")


def test_reserved_ports_are_all_different_and_free_for_a_server() -> None:
    ports = [ReservedPort() for _ in range(50)]
    assert len({port.number for port in ports}) == 50
    for port in ports:
        with socket.create_server(("127.0.0.1", port.number)):
            pass
        port.release()


def test_a_port_in_use_is_not_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    free = ReservedPort()
    free.release()
    monkeypatch.setattr("random.sample", lambda *_: [free.number])
    with socket.create_server(("127.0.0.1", free.number)):
        with pytest.raises(RuntimeError, match="No free port"):
            ReservedPort()
    ReservedPort().release()


def test_the_url_of_the_session_answers(redis_url: str) -> None:
    with connect(redis_url) as client:
        assert client.ping()


def test_a_server_for_a_while() -> None:
    with running_redis() as url, connect(url) as client:
        assert client.dbsize() == 0
    with connect(url) as client, pytest.raises(exceptions.ConnectionError):
        client.ping()


def test_a_fresh_server_takes_no_time() -> None:
    best = 1.0
    for _ in range(5):
        started = time.perf_counter()
        with RedisServer():
            pass
        best = min(best, time.perf_counter() - started)
    assert best < 0.1


def test_nothing_of_a_server_stays(tmp_path: Path) -> None:
    with RedisServer() as server:
        assert server.folder.exists()
        assert server.running
    assert not server.folder.exists()
    assert not server.running


def test_a_server_that_cannot_start_says_why_and_leaves_nothing() -> None:
    server = RedisServer(settings={"no-such-setting": "1"})
    with pytest.raises(RuntimeError, match="no-such-setting"), server:
        pass
    assert not server.folder.exists()


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_a_server_is_gone_and_comes_back_empty_on_the_same_port(
    redis_server: RedisServer, client: redis.Redis, way: str
) -> None:
    client.set("key", "value")
    getattr(redis_server, way)()
    assert not redis_server.running
    with pytest.raises(exceptions.ConnectionError):
        client.ping()
    redis_server.start()
    assert client.get("key") is None


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_a_server_that_appends_keeps_its_data(way: str) -> None:
    with RedisServer(append_only=True) as server, connect(server.url) as client:
        client.set("key", "value")
        getattr(server, way)()
        server.start()
        assert client.get("key") == "value"


def test_a_restart_cuts_connections(redis_server: RedisServer) -> None:
    with socket.create_connection((redis_server.host, redis_server.port), 5) as connection:
        connection.sendall(b"PING\r\n")
        assert connection.recv(100) == b"+PONG\r\n"
        redis_server.restart()
        assert connection.recv(100) == b""


def test_a_server_does_not_start_twice(redis_server: RedisServer) -> None:
    with pytest.raises(RuntimeError, match="runs already"):
        redis_server.start()


def test_a_paused_server_is_silent_and_then_answers(redis_server: RedisServer) -> None:
    with connect(redis_server.url, socket_timeout=0.1) as client:
        client.ping()
        redis_server.pause()
        with pytest.raises(exceptions.TimeoutError):
            client.ping()
        with connect(redis_server.url, socket_timeout=0.1) as another, pytest.raises(exceptions.TimeoutError):
            another.ping()
        assert redis_server.running
        redis_server.resume()
        assert client.ping()


def test_a_paused_server_can_be_stopped(redis_server: RedisServer) -> None:
    redis_server.pause()
    redis_server.stop()
    assert not redis_server.running


def test_a_server_without_memory_refuses_to_write(redis_server: RedisServer, client: redis.Redis) -> None:
    client.rpush("list", "value")
    redis_server.limit_memory()
    with pytest.raises(exceptions.OutOfMemoryError):
        client.set("key", "value")
    assert client.lpop("list") == "value"
    redis_server.limit_memory(0)
    assert client.set("key", "value")


def test_a_replica_refuses_to_write(redis_server: RedisServer, client: redis.Redis) -> None:
    redis_server.follow()
    with pytest.raises(exceptions.ReadOnlyError):
        client.set("key", "value")
    redis_server.lead()
    assert client.set("key", "value")


def test_a_server_loads_until_the_test_lets_it_finish(redis_server: RedisServer, client: redis.Redis) -> None:
    client.set("key", "value")
    with redis_server.loading():
        with pytest.raises(exceptions.BusyLoadingError):
            client.get("key")
        with pytest.raises(exceptions.BusyLoadingError):
            client.get("key")
    assert client.get("key") == "value"
    assert client.dbsize() == 1
    redis_server.restart()
    assert client.dbsize() == 0


def test_connections_are_counted_without_those_of_the_test(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    assert redis_server.connections() == []
    client.ping()
    assert [connection["cmd"] for connection in redis_server.connections()] == ["ping"]


def test_connections_are_closed_by_kind(redis_server: RedisServer, client: redis.Redis) -> None:
    with client.pubsub() as listener:
        listener.subscribe("channel")
        assert listener.get_message(timeout=1)
        client.ping()
        assert redis_server.disconnect("pubsub") == 1
        assert [connection["cmd"] for connection in redis_server.connections()] == ["ping"]
        assert redis_server.disconnect() == 1
        assert redis_server.connections() == []


def test_a_password_is_asked_for_and_in_the_urls() -> None:
    with RedisServer(password="p@ss w/rd") as server:
        for url in (server.url, server.unix_url):
            with connect(url) as client:
                assert client.ping()
        for url in (f"redis://{server.host}:{server.port}", server.url_for(password="wrong")):
            with connect(url) as client, pytest.raises(exceptions.AuthenticationError):
                client.ping()
        assert server.command("PING")


def test_users_may_do_what_their_rules_say_also_after_a_restart() -> None:
    with RedisServer(users={"reader": "on >secret ~queue:* +@read"}) as server:
        server.set_user("writer", "on >secret ~queue:* +@write")
        server.restart()
        with connect(server.url_for("reader", "secret")) as client:
            assert client.get("queue:1") is None
            with pytest.raises(exceptions.NoPermissionError):
                client.set("queue:1", "value")
            with pytest.raises(exceptions.NoPermissionError):
                client.get("other")
        with connect(server.url_for("writer", "secret")) as client:
            assert client.set("queue:1", "value")


def test_each_url_has_its_database(redis_server: RedisServer) -> None:
    with connect(redis_server.url_for(db=3)) as third, connect(redis_server.url) as first:
        third.set("key", "value")
        assert first.get("key") is None


def test_a_unix_socket_leads_to_the_same_server(redis_server: RedisServer, client: redis.Redis) -> None:
    with connect(redis_server.unix_url) as by_socket:
        by_socket.set("key", "value")
    assert client.get("key") == "value"


def test_tls_is_checked_both_ways(certificates: Certificates, tmp_path: Path) -> None:
    with RedisServer(certificates=certificates, client_certificates=True) as server:
        known = {"ssl_certfile": str(certificates.client), "ssl_keyfile": str(certificates.client_key)}
        with connect(server.url, **known) as client:
            assert client.ping()
        with connect(server.url) as client, pytest.raises(exceptions.ConnectionError):
            client.ping()
        stranger = make_certificates(tmp_path)
        url = server.url.partition("?")[0]
        with connect(url, ssl_ca_certs=str(stranger.authority), **known) as client:
            with pytest.raises(exceptions.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
                client.ping()
        with connect(url.replace("rediss", "redis")) as client, pytest.raises(exceptions.ConnectionError):
            client.ping()


def test_tls_works_by_name_too(certificates: Certificates) -> None:
    with RedisServer(certificates=certificates) as server:
        with connect(server.url.replace("127.0.0.1", "localhost"), ssl_check_hostname=True) as client:
            assert client.ping()


def test_a_sentinel_fails_over_and_keeps_the_data(redis_sentinel: RedisSentinel) -> None:
    first, second = redis_sentinel.primary, redis_sentinel.replica
    watcher = redis.Sentinel([(redis_sentinel.sentinel.host, redis_sentinel.sentinel.port)])
    client = watcher.master_for(redis_sentinel.name, decode_responses=True)
    client.set("key", "value")
    with connect(second.url) as replica, pytest.raises(exceptions.ReadOnlyError):
        replica.set("key", "other")

    assert redis_sentinel.fail_over() is second
    assert client.get("key") == "value"
    second.kill()
    assert redis_sentinel.wait_for_other_primary(second) is first
    assert client.set("key", "another")
    client.close()
