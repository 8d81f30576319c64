"""Each way to write where a Redis server is: what is understood, and that it leads there."""

from __future__ import annotations

import asyncio
import ssl
import sys
import time
from typing import Any

import pytest
from redis.credentials import CredentialProvider
from tests.services import Certificates, RedisSentinel, RedisServer, make_certificates
from tests.unit.redis.conftest import AT_ONCE, OpenLink

from celeriac.errors import BrokerUnavailable, ConfigurationError
from celeriac.redis.server import Server


@pytest.mark.parametrize(
    "url, expected",
    [
        ("redis://", {"address": (("127.0.0.1", 6379),), "db": 0}),
        ("redis:///3", {"address": (("127.0.0.1", 6379),), "db": 3}),
        ("redis://cache", {"address": (("cache", 6379),)}),
        ("redis://cache:7000/2", {"address": (("cache", 7000),), "db": 2}),
        ("redis://cache:7000//", {"db": 0}),
        ("redis://cache/?db=4", {"db": 4}),
        ("redis://cache?virtual_host=5", {"db": 5}),
        ("redis://[::1]:7000/1", {"address": (("::1", 7000),), "db": 1}),
        ("redis://:s%40cret@cache", {"username": None, "password": "s@cret"}),
        ("redis://ann:s%2Fcret@cache", {"username": "ann", "password": "s/cret"}),
        ("valkey://cache", {"address": (("cache", 6379),), "tls": False}),
        ("rediss://cache", {"address": (("cache", 6379),), "tls": True}),
        ("valkeys://cache", {"tls": True}),
        ("REDIS://cache", {"address": (("cache", 6379),)}),
        ("unix:///run/redis.sock", {"path": "/run/redis.sock", "address": (), "db": 0}),
        ("unix:///run/redis.sock?db=2", {"path": "/run/redis.sock", "db": 2}),
        ("unix://:secret@/run/redis.sock", {"path": "/run/redis.sock", "password": "secret"}),
        ("unix://ann:secret@/run/redis.sock", {"path": "/run/redis.sock", "username": "ann"}),
        ("redis+socket:///run/redis.sock", {"path": "/run/redis.sock"}),
        ("redis+socket:///run/redis.sock?virtual_host=2", {"path": "/run/redis.sock", "db": 2}),
        ("redis+socket://:secret@/run/redis.sock", {"path": "/run/redis.sock", "password": "secret"}),
        ("socket:///run/redis%20one.sock", {"path": "/run/redis one.sock"}),
        (
            "redis://cache?socket_timeout=1.5&socket_connect_timeout=2",
            {"reply_timeout": 1.5, "connect_timeout": 2.0},
        ),
    ],
)
def test_a_url_is_understood(url: str, expected: dict[str, Any]) -> None:
    server = Server.from_url(url)
    assert {name: getattr(server, name) for name in expected} == expected


@pytest.mark.parametrize(
    "url, expected",
    [
        ("sentinel://one", {"address": (("one", 26379),), "db": 0}),
        ("sentinel://one:26380/2", {"address": (("one", 26380),), "db": 2}),
        (
            "sentinel://one:1;sentinel://two:2;sentinel://three:3/4",
            {"address": (("one", 1), ("two", 2), ("three", 3)), "db": 4},
        ),
        ("sentinel://one:1/4;sentinel://two:2", {"address": (("one", 1), ("two", 2)), "db": 4}),
        ("sentinel://:secret@one:1;sentinel://:secret@two:2", {"password": "secret"}),
    ],
)
def test_a_url_of_sentinels_is_understood(url: str, expected: dict[str, Any]) -> None:
    server = Server.from_url(url, {"master_name": "tasks"})
    assert {name: getattr(server, name) for name in expected} == expected
    assert server.master_name == "tasks"


@pytest.mark.parametrize(
    "url, complaint",
    [
        ("amqp://cache", r"amqp:// is no URL of a Redis server"),
        ("redis://cache:port", r"no valid port"),
        ("redis://cache:70000", r"no valid port"),
        ("redis://cache/queue", r"is a number, not 'queue'"),
        ("redis://cache?socket_timeout=soon", r"socket_timeout .* must be a number, not 'soon'"),
        ("sentinel://one", r"needs the name of the group.*master_name"),
    ],
)
def test_a_url_that_cannot_work_is_refused_with_the_reason(url: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        Server.from_url(url)


@pytest.mark.parametrize("name", ["socket_timeout", "socket_connect_timeout"])
def test_an_option_that_cannot_work_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} must be a number, not 'soon'"):
        Server.from_url("redis://", {name: "soon"})


@pytest.mark.parametrize(
    "url",
    [
        "redis://ann:hidden@cache/1",
        "unix://:hidden@/run/redis.sock",
        "sentinel://:hidden@one;sentinel://:hidden@two",
    ],
)
def test_no_password_is_ever_shown(url: str) -> None:
    server = Server.from_url(url, {"master_name": "tasks", "sentinel_kwargs": {"password": "hidden"}})
    assert "hidden" not in str(server)
    assert "hidden" not in repr(server)


def test_the_name_tells_which_server_is_meant() -> None:
    assert str(Server.from_url("redis://cache:7000/2")) == "Redis at cache:7000"
    assert str(Server.from_url("unix:///run/redis.sock")) == "Redis at /run/redis.sock"
    sentinels = Server.from_url("sentinel://one;sentinel://two", {"master_name": "tasks"})
    assert str(sentinels) == "Redis group 'tasks' of sentinels at one:26379, two:26379"


def test_equal_urls_are_one_server_and_different_databases_are_not() -> None:
    one = Server.from_url("redis://cache/1", {"socket_keepalive_options": {1: 2}, "visibility_timeout": 5})
    assert len({one, Server.from_url("redis://cache:6379/1"), Server.from_url("redis://cache/2")}) == 2


def test_what_proves_either_side_is_not_shared() -> None:
    url = "rediss://h/0"
    assert Server.from_url(url, {"ssl_cert_reqs": "none"}) != Server.from_url(
        url, {"ssl_cert_reqs": "required"}
    )
    assert Server.from_url(url, {"credential_provider": object()}) != Server.from_url(url)
    alike = [Server.from_url(url, {"socket_keepalive_options": {1: 2}}) for _ in range(2)]
    assert len(set(alike)) == 1


def test_without_the_driver_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(ConfigurationError, match=r'pip install "celeriac\[redis\]"'):
        Server.from_url("redis://")


@pytest.mark.parametrize("way", ["port", "valkey", "localhost", "unix", "redis+socket", "database", "option"])
async def test_each_url_leads_to_its_server_and_database(
    redis_server: RedisServer, open_link: OpenLink, way: str
) -> None:
    url = {
        "port": redis_server.url,
        "valkey": redis_server.url.replace("redis", "valkey"),
        "localhost": redis_server.url.replace("127.0.0.1", "localhost"),
        "unix": f"{redis_server.unix_url}?db=3",
        "redis+socket": f"redis+socket://{redis_server.socket_path}?virtual_host=3",
        "database": redis_server.url_for(db=3),
        "option": f"redis://{redis_server.host}:{redis_server.port}",
    }[way]
    link = await open_link(url, **({"db": 3} if way == "option" else {}))
    await link.send("SET", "key", "value")
    expected = 3 if way in {"unix", "redis+socket", "database", "option"} else 0
    assert redis_server.command("INFO", "keyspace").keys() == {f"db{expected}"}


async def test_users_are_known_by_name_and_password(open_link: OpenLink) -> None:
    with RedisServer(password="s@cret", users={"ann": "on >an/other ~* +@all"}) as server:
        for url in (server.url, server.unix_url, server.url_for("ann", "an/other")):
            assert await (await open_link(url)).send("PING") == b"PONG"
        anonymous = f"redis://{server.host}:{server.port}"
        link = await open_link(anonymous, username="ann", password="an/other")
        assert await link.send("ACL", "WHOAMI") == b"ann"


class Vault(CredentialProvider):
    def get_credentials(self) -> tuple[str, str]:
        return "ann", "secret"


async def test_credentials_can_come_from_a_provider(open_link: OpenLink) -> None:
    with RedisServer(password="other", users={"ann": "on >secret ~* +@all"}) as server:
        link = await open_link(server.url, credential_provider=Vault())
        assert await link.send("ACL", "WHOAMI") == b"ann"


async def test_connections_have_the_name_that_was_wanted(
    redis_server: RedisServer, open_link: OpenLink
) -> None:
    link = await open_link(redis_server.url, client_name="shop")
    assert await link.send("CLIENT", "GETNAME") == b"shop"


async def test_tls_by_url_and_by_broker_use_ssl(certificates: Certificates, open_link: OpenLink) -> None:
    with RedisServer(certificates=certificates, client_certificates=True) as server:
        files = {
            "ssl_ca_certs": str(certificates.authority),
            "ssl_certfile": str(certificates.client),
            "ssl_keyfile": str(certificates.client_key),
        }
        query = "&".join(f"{name}={value}" for name, value in files.items())
        address = f"{server.host}:{server.port}"
        for url, options in [
            (f"rediss://{address}?{query}&ssl_cert_reqs=CERT_REQUIRED", {}),
            (f"rediss://{address}?{query}&ssl_cert_reqs=required", {}),
            (f"valkeys://{address}?{query}", {}),
            (f"rediss://{address}", {"ssl": {**files, "ssl_cert_reqs": ssl.CERT_REQUIRED}}),
            (f"redis://{address}", {"ssl": files}),
            (f"rediss://{address}?{query}&ssl_cert_reqs=none".replace("ssl_ca_certs", "ignored"), {}),
        ]:
            link = await open_link(url, socket_connect_timeout=2, **options)
            assert await link.send("PING") == b"PONG", url


async def test_tls_to_somebody_unknown_is_refused(
    certificates: Certificates, open_link: OpenLink, tmp_path: Any
) -> None:
    stranger = make_certificates(tmp_path)
    with RedisServer(certificates=certificates) as server:
        url = f"rediss://{server.host}:{server.port}?ssl_ca_certs={stranger.authority}"
        link = await open_link(url, socket_connect_timeout=2)
        with pytest.raises(
            BrokerUnavailable, match=r"certificate that is not trusted here.*verify failed"
        ) as caught:
            await link.send("PING")
        assert caught.value.permanent


async def test_tls_options_do_no_harm_without_tls(redis_server: RedisServer, open_link: OpenLink) -> None:
    link = await open_link(f"{redis_server.url}?ssl_cert_reqs=none")
    assert await link.send("PING") == b"PONG"


async def test_sentinels_lead_to_the_primary_also_after_a_failover(
    redis_sentinel: RedisSentinel, open_link: OpenLink
) -> None:
    link = await open_link(redis_sentinel.url, master_name=redis_sentinel.name)
    first, second = redis_sentinel.primary, redis_sentinel.replica
    assert await link.send("SET", "key", "value") == b"OK"
    assert first.connections()
    first.kill()
    with pytest.raises(BrokerUnavailable):
        await link.send("SET", "key", "lost")
    redis_sentinel.wait_for_other_primary(first)
    assert await link.send("SET", "key", "another") == b"OK"
    assert second.command("GET", "key") == "another"


async def test_a_former_primary_is_left(redis_sentinel: RedisSentinel, open_link: OpenLink) -> None:
    link = await open_link(redis_sentinel.url, master_name=redis_sentinel.name)
    await link.send("SET", "key", "value")
    former = redis_sentinel.primary
    primary = await asyncio.to_thread(redis_sentinel.fail_over)
    await asyncio.to_thread(redis_sentinel.wait_for_replica, former)
    assert await link.send("SET", "key", "another") == b"OK"
    assert primary.command("GET", "key") == "another"


async def test_sentinels_that_are_gone_or_know_nothing_are_named(
    redis_sentinel: RedisSentinel, open_link: OpenLink
) -> None:
    address = f"{redis_sentinel.sentinel.host}:{redis_sentinel.sentinel.port}"
    link = await open_link(redis_sentinel.url, master_name="other")
    group = f"Redis group 'other' of sentinels at {address} cannot be reached: no sentinel names a primary"
    with pytest.raises(BrokerUnavailable, match=f"{group}.*knows no group 'other'"):
        await link.send("PING")
    redis_sentinel.sentinel.kill()
    started = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=f"{group}.*connecting to {address}"):
        await link.send("PING")
    assert time.monotonic() - started < AT_ONCE


async def test_a_sentinel_that_sees_too_few_others_is_not_believed(
    redis_sentinel: RedisSentinel, open_link: OpenLink
) -> None:
    link = await open_link(redis_sentinel.url, master_name=redis_sentinel.name, min_other_sentinels=1)
    with pytest.raises(BrokerUnavailable, match="does not see enough others"):
        await link.send("PING")


async def test_sentinels_that_are_gone_or_silent_cost_no_time(
    redis_sentinel: RedisSentinel, open_link: OpenLink
) -> None:
    with RedisServer() as silent:
        silent.pause()
        url = f"sentinel://{silent.host}:{silent.port};sentinel://127.0.0.1:1;{redis_sentinel.url}"
        link = await open_link(url, master_name=redis_sentinel.name, socket_connect_timeout=5)
        started = time.monotonic()
        assert await link.send("PING") == b"PONG"
        assert time.monotonic() - started < AT_ONCE
