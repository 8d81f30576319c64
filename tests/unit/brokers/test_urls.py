"""Which broker a URL means."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from celeriac import Celery
from celeriac.brokers.kombu import KombuBroker
from celeriac.brokers.memory import MemoryBroker
from celeriac.brokers.redis import RedisBroker
from celeriac.brokers.sql import SQLBroker
from celeriac.brokers.urls import broker_for, load_driver
from celeriac.errors import ConfigurationError


def test_sqlite_and_memory(tmp_path: Path) -> None:
    broker = broker_for(f"sqlite:///{tmp_path}/celery.db", lease=7.0, options={"visibility_timeout": 3600})
    assert isinstance(broker, SQLBroker)
    assert broker.lease == 7.0
    assert isinstance(broker_for("memory://"), MemoryBroker)
    assert broker_for("memory://").lease == 30.0


@pytest.mark.parametrize(
    "url",
    ["redis://localhost", "rediss://u:p@h:1/2", "valkey://h", "unix:///tmp/redis.sock", "redis+socket:///a"],
)
def test_redis_in_all_its_spellings(url: str) -> None:
    broker = broker_for(url, lease=7.0, options={"visibility_timeout": 3600})
    assert isinstance(broker, RedisBroker)
    assert broker.lease == 7.0


@pytest.mark.parametrize("url", ["amqp://localhost", "amqps://u:p@h:1/vhost", "pyamqp://h"])
def test_rabbitmq_in_all_its_spellings(url: str) -> None:
    assert type(broker_for(url, lease=7.0)).__name__ == "AMQPBroker"


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("aiormq", "celeriac.brokers.amqp"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiormq", None)
    with pytest.raises(ConfigurationError, match=r'pip install "celeriac\[rabbitmq\]"'):
        broker_for("amqp://localhost")


def test_sentinels_need_the_name_of_their_group() -> None:
    url = "sentinel://a:26379;sentinel://b:26379/1"
    with pytest.raises(ConfigurationError, match="master_name"):
        broker_for(url)
    assert isinstance(broker_for(url, options={"master_name": "mymaster"}), RedisBroker)


@pytest.mark.parametrize(
    "options",
    [
        {"priority_steps": []},
        {"priority_steps": [3, 0]},
        {"priority_steps": "x"},
        {"priority_order": "lowest"},
    ],
)
def test_a_redis_option_that_cannot_work_is_named(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(ConfigurationError, match=name):
        broker_for("redis://localhost", options=options)


async def test_memory_brokers_share_by_name() -> None:
    first, same, other = (broker_for(url) for url in ("memory://urls", "memory://urls/", "memory://others"))
    assert isinstance(first, MemoryBroker)
    assert isinstance(same, MemoryBroker)
    assert isinstance(other, MemoryBroker)
    assert first._shared is same._shared
    assert first._shared is not other._shared


async def test_a_relative_path_is_the_folder_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    broker = broker_for("sqlite:///celery.db")
    monkeypatch.chdir("/")

    await broker.open()
    await broker.close()

    assert (tmp_path / "celery.db").exists()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("nonsense://localhost", "no broker for 'nonsense' URLs"),
        ("", "no broker"),
        ("celery.db", "no broker"),
        ("sqlite://", "names no file"),
    ],
)
def test_anything_else_says_what_is_supported(url: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        broker_for(url)

    assert "memory://" in str(caught.value)


def test_kombus_transports_have_a_keeper(tmp_path: Path) -> None:
    kept_in = f"sqlite:///{tmp_path}/celery.db"
    broker = broker_for(f"sqla+sqlite:///{tmp_path}/broker.db", lease=7.0, kept_in=kept_in)
    assert isinstance(broker, KombuBroker)
    assert broker.lease == 7.0
    assert not broker.capabilities.fanout
    assert isinstance(broker.renewer(), SQLBroker)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("sqla+nonsense://host/db", "SQLAlchemy knows no database 'nonsense'"),
        ("sqla+", "must be sqla\\+ and a URL of SQLAlchemy's"),
        ("sqla+oracle://host/db", r"needs the package (\w+): pip install \1$"),
        ("librabbitmq://host", "write amqp:// for the same server"),
        ("consul://host", "consul:// needs the package python-consul: pip install python-consul$"),
        ("etcd://host", "etcd:// needs the package python-etcd: pip install python-etcd$"),
        ("pgmq://host", 'pgmq:// needs the package pgmq: pip install "kombu\\[pgmq\\]"$'),
    ],
)
def test_what_a_transport_needs_is_named(url: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MySQLdb", "psycopg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigurationError, match=sentence):
        load_driver(url)


@pytest.mark.parametrize(
    "url, package, extra",
    [
        ("kafka://host", "confluent_kafka", "kafka"),
        ("confluentkafka://host", "confluent_kafka", "kafka"),
        ("zookeeper://host", "kazoo", "zookeeper"),
        ("sqla+postgresql://host/db", "psycopg", "postgres"),
    ],
)
def test_an_extra_that_is_missing_is_named(
    url: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    loaded = [
        name for name in sys.modules if f"kombu_sources.{extra}" in name or name.startswith(f"{package}.")
    ]
    for name in loaded:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        ConfigurationError, match=rf'needs the package {package}: pip install "celeriac\[{extra}\]"'
    ):
        load_driver(url)


@pytest.mark.parametrize(
    ("backend", "kept_in"),
    [
        (None, "sqlite:///celery.db"),
        ("sqlite:////tmp/records.db", "sqlite:////tmp/records.db"),
        ("redis://localhost/1", "redis://localhost/1"),
        ("disabled://", "sqlite:///celery.db"),
    ],
)
def test_the_keeper_is_beside_the_records(backend: str | None, kept_in: str) -> None:
    app = Celery("urls", broker="filesystem://", backend=backend, set_as_current=False)

    assert app.settings.kept_in == kept_in


@pytest.mark.parametrize(("url", "lease"), [("redis://localhost", 30.0), ("sqlite:///celery.db", 43200.0)])
def test_the_visibility_timeout_of_stock_workers_on_redis_is_no_lease(url: str, lease: float) -> None:
    app = Celery("urls", broker=url, set_as_current=False)
    app.conf.broker_transport_options = {"visibility_timeout": 43200}

    assert app.settings.lease == lease


@pytest.mark.parametrize(
    "url", ["amqp://me:pa/ss@host//", "sqs://AKIA:pa/ss@", "redis://:pa#ss@host/0", "zookeeper://me:pa?ss@h"]
)
def test_a_password_that_has_to_be_quoted_is_not_taken_for_a_port(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"write a / in its user or password as %2F") as caught:
        broker_for(url)
    assert "pa" not in str(caught.value).replace("password", "")


@pytest.mark.parametrize(
    "url",
    [
        "amqp://me:pa%2Fss@host/v@host",
        "amqp://host:5672/v@host",
        "amqp://[::1]:5672/v@host",
        "sentinel://a:1;sentinel://:secret@b:2/0",
        "confluentkafka://a:9092;confluentkafka://me:secret@b:9092",
        "sqla+sqlite:////tmp/a:b@c.db",
    ],
)
def test_what_is_quoted_or_needs_no_quotes_is_read(url: str) -> None:
    broker_for(url, options={"master_name": "mymaster"})


def test_a_server_that_speaks_another_amqp_is_not_said_to_speak_ours() -> None:
    with pytest.raises(ConfigurationError, match=r"speaks AMQP 0-10"):
        broker_for("qpid://host")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("mongodb://localhost", r"mongodb:// needs the package pymongo: pip install pymongo"),
        ("zookeeper://localhost/x", r'pip install "celeriac\[zookeeper\]"'),
        ("sqs://AKIA:pa/ss@", r"write a / in its user or password as %2F"),
        ("nosuch://x", r"The broker's URL cannot be used: No such transport: nosuch\."),
        ("amqp://localhost:abc//", r"The broker's URL cannot be used: .* as 'abc'\."),
    ],
)
def test_what_celery_itself_connects_for_says_the_same(
    url: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``celery worker`` and ``.delay()`` begin with a connection of kombu's."""
    for name in [name for name in sys.modules if name.startswith("celeriac.brokers.kombu_sources.zookeeper")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("pymongo", "kazoo", "kazoo.client"):
        monkeypatch.setitem(sys.modules, name, None)
    app = Celery("shop", broker=url, set_as_current=False)
    with pytest.raises(ConfigurationError, match=sentence):
        app.connection_for_write()
