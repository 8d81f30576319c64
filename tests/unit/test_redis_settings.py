"""From Celery's settings to one Redis server for broker and results: nothing but the broker's URL has to be given."""

from __future__ import annotations

import ssl
from typing import Any

import celery
import pytest
from celery.backends.redis import RedisBackend as StockBackend
from celery.backends.redis import SentinelBackend as StockSentinelBackend

from celeriac import Celery
from celeriac.backends.redis import RedisBackend, SentinelBackend
from celeriac.redis.urls import celery_url


def app_with(**settings: Any) -> Celery:
    app = Celery("unit", set_as_current=False)
    app.conf.update(**{"broker_url": "redis://localhost/1", **settings})
    return app


@pytest.mark.parametrize(
    "url",
    ["redis://h/1", "rediss://h/1", "valkey://h/1", "valkeys://h/1", "unix:///s", "redis+socket:///s"],
)
def test_results_live_beside_the_messages(url: str) -> None:
    app = Celery("unit", broker=url, set_as_current=False)
    assert app.settings.result_backend == url
    assert type(app.backend) is RedisBackend


def test_another_backend_is_the_users_choice() -> None:
    assert app_with(result_backend="redis://other/2").settings.result_backend == "redis://other/2"
    assert app_with(result_backend="disabled://").settings.result_transport_options == {}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://u:p@h:1/2?x=1", "redis://u:p@h:1/2?x=1"),
        ("valkey://h/1", "redis://h/1"),
        ("valkeys://h/1", "rediss://h/1"),
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock"),
        ("unix://u:p@/run/redis.sock?db=2", "redis+socket://u:p@/run/redis.sock?virtual_host=2"),
        ("socket:///run/redis.sock", "redis+socket:///run/redis.sock"),
        ("sentinel://a:1;sentinel://b:2/0", "sentinel://a:1;sentinel://b:2/0"),
        ("amqp://h", "amqp://h"),
    ],
)
def test_urls_in_celerys_words(url: str, expected: str) -> None:
    assert celery_url(url) == expected


@pytest.mark.parametrize(
    "url", ["unix:///run/redis.sock?db=3", "redis+socket:///run/redis.sock?virtual_host=3"]
)
def test_a_socket_reaches_everybody(url: str) -> None:
    app = Celery("unit", broker=url, set_as_current=False)
    backend = app.backend.connparams
    assert (backend["path"], backend["db"]) == ("/run/redis.sock", 3)
    with app.connection_for_write() as connection:
        assert connection.transport_cls == "redis"
        assert connection.hostname == "socket:///run/redis.sock?virtual_host=3"


def test_how_to_get_there_is_said_once() -> None:
    options = {"master_name": "main", "socket_timeout": 3, "global_keyprefix": "shop:"}
    app = Celery("unit", broker="sentinel://a:1;sentinel://b:2/0", set_as_current=False)
    app.conf.broker_transport_options = options
    assert app.settings.result_transport_options == options
    assert type(app.backend) is SentinelBackend
    assert isinstance(app.backend, StockSentinelBackend)
    assert app.backend.task_keyprefix == b"shop:celery-task-meta-"


def test_what_stock_processes_do_not_know_does_not_follow() -> None:
    chosen = app_with(
        result_backend="redis://localhost/1",
        broker_transport_options={"global_keyprefix": "shop:", "socket_timeout": 3},
    )
    assert chosen.settings.result_transport_options == {"socket_timeout": 3}
    assert chosen.backend.task_keyprefix == b"celery-task-meta-"
    elsewhere = app_with(
        result_backend="redis://localhost/2", broker_transport_options={"global_keyprefix": "shop:"}
    )
    assert elsewhere.settings.result_transport_options == {}
    own = app_with(
        broker_transport_options={"global_keyprefix": "shop:"},
        result_backend_transport_options={"global_keyprefix": "till:"},
    )
    assert own.settings.result_transport_options == {"global_keyprefix": "till:"}


def test_encryption_is_said_once() -> None:
    wanted = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": "/ca.pem"}
    app = app_with(broker_url="rediss://localhost/1", broker_use_ssl=wanted)
    assert app.settings.transport_options["ssl"] == wanted
    assert app.settings.result_transport_options["ssl"] == wanted
    assert app.backend.connparams["ssl_ca_certs"] == "/ca.pem"
    separate = app_with(
        broker_url="redis://localhost/1",
        result_backend="rediss://other/1",
        redis_backend_use_ssl=wanted,
    )
    assert separate.settings.result_transport_options["ssl"] == wanted
    assert "ssl" not in separate.settings.transport_options


def test_encryption_checks_certificates_by_itself() -> None:
    app = app_with(broker_url="rediss://localhost/1")
    assert app.backend.connparams["ssl_cert_reqs"] == ssl.CERT_REQUIRED
    lax = app_with(broker_url="rediss://localhost/1?ssl_cert_reqs=none")
    assert lax.backend.connparams["ssl_cert_reqs"] == ssl.CERT_NONE


def test_a_login_of_its_own_setting() -> None:
    app = app_with(redis_username="ann", redis_password="secret")
    assert app.settings.result_transport_options == {"username": "ann", "password": "secret"}


def test_a_stock_app_keeps_its_own_backend() -> None:
    assert type(app_with().backend) is RedisBackend
    stock = celery.Celery("stock", backend="redis://localhost/1", set_as_current=False)
    assert type(stock.backend) is StockBackend
