"""Where RabbitMQ is and how it is reached: several servers of a cluster, and Celery's settings about connections."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from urllib.parse import urlsplit

import pytest
from kombu import pools
from tests.services import Proxy, RabbitMQServer

from celeriac import Celery
from celeriac.brokers.amqp_link import place_of, places_of
from celeriac.brokers.urls import broker_for, load_driver
from celeriac.errors import BrokerUnavailable, ConfigurationError
from celeriac.testing.contract.messages import collect, publication

load_driver("amqp://")

#: Nobody listens there.
NOWHERE = "amqp://guest:secret@127.0.0.1:1//"


def through(proxy: Proxy, url: str) -> str:
    """The URL of the same virtual host behind a proxy."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"guest:guest@{proxy.host}:{proxy.port}").geturl()


async def test_the_next_server_does_where_the_first_is_gone(rabbitmq_url: str) -> None:
    broker = broker_for(f"{NOWHERE};{rabbitmq_url}")
    await broker.open()
    await broker.publish([publication("1")])
    assert len(await collect(broker, 1)) == 1
    await broker.close()


async def test_all_of_them_gone_is_said_once(rabbitmq_url: str) -> None:
    broker = broker_for(f"{NOWHERE};{NOWHERE.replace(':1//', ':2//')}")
    await broker.open()
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:2 cannot be reached"):
        await broker.publish([publication("1")])
    await broker.close()


async def test_both_connections_move_when_their_server_goes(
    rabbitmq: RabbitMQServer, rabbitmq_url: str
) -> None:
    async with Proxy(rabbitmq.host, rabbitmq.port) as proxy:
        broker = broker_for(f"{through(proxy, rabbitmq_url)};{rabbitmq_url}")
        await broker.open()
        await broker.publish([publication("1")])
        assert len(await collect(broker, 1)) == 1
        assert proxy.open_connections == 2
        await proxy.refuse()
        async with asyncio.timeout(20):
            while True:
                try:
                    await broker.publish([publication("2")])
                    break
                except BrokerUnavailable:  # of the connection that was cut
                    await asyncio.sleep(0.02)
        # The first was not settled, so it comes again.
        assert len(await collect(broker, 2)) == 2
        await broker.close()


async def test_who_gives_up_on_a_silent_server_tries_the_next_one(
    rabbitmq: RabbitMQServer, rabbitmq_url: str
) -> None:
    async with Proxy(rabbitmq.host, rabbitmq.port) as proxy:
        proxy.blackhole()
        broker = broker_for(f"{through(proxy, rabbitmq_url)};{rabbitmq_url}")
        await broker.open()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await broker.publish([publication("1")])
        async with asyncio.timeout(9):
            await broker.publish([publication("1")])
        await broker.close()


async def test_a_connection_timeout_of_ones_own(rabbitmq: RabbitMQServer, rabbitmq_url: str) -> None:
    async with Proxy(rabbitmq.host, rabbitmq.port) as proxy:
        proxy.blackhole()
        broker = broker_for(through(proxy, rabbitmq_url), options={"connect_timeout": 0.3})
        await broker.open()
        async with asyncio.timeout(5):
            with pytest.raises(BrokerUnavailable, match="does not answer"):
                await broker.publish([publication("1")])
        await broker.close()


def app_with(**settings: Any) -> Celery:
    app = Celery("places", set_as_current=False)
    app.conf.update(settings)
    return app


def options_of(**settings: Any) -> Any:
    return app_with(broker_url="amqp://h", **settings).settings.transport_options


def test_celerys_settings_say_how_to_connect() -> None:
    assert options_of() == {}
    told = options_of(broker_heartbeat=7, broker_connection_timeout=2.5, broker_login_method="EXTERNAL")
    assert told == {"heartbeat": 7, "connect_timeout": 2.5, "login_method": "EXTERNAL"}
    place = place_of("amqp://h", told, lease=30)
    assert (place.url, place.patience) == ("amqp://guest:guest@h:5672/%2F?heartbeat=7&auth=external", 2.5)
    assert "heartbeat=15" in place_of("amqp://h", {}, lease=30).url
    assert "heartbeat=9" in place_of("amqp://h?heartbeat=9", told, lease=30).url


def test_servers_are_tried_in_turn_or_in_any_order() -> None:
    url = ";".join(f"amqp://h{number}" for number in range(20))
    assert [each.shown for each in places_of(url, {}, 30)][:2] == ["amqp://h0:5672", "amqp://h1:5672"]
    shuffled = [each.shown for each in places_of(url, options_of(broker_failover_strategy="shuffle"), 30)]
    assert len(set(shuffled)) == 20
    assert shuffled != [each.shown for each in places_of(url, {}, 30)]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"broker_failover_strategy": "best"}, "broker_failover_strategy must be"),
        ({"broker_login_method": "AMQPLAIN"}, "knows PLAIN and EXTERNAL: remove it"),
    ],
)
def test_what_cannot_be_done_is_said(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        app_with(broker_url="amqp://h", **settings)._connections.make_broker()


@pytest.mark.parametrize("join", [";".join, list])
def test_an_app_with_several_servers_enqueues_and_delays(
    rabbitmq_url: str, join: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "celeriac")
    pools.reset()  # kombu tells connections apart by their first URL
    app = app_with(
        broker_url=join([NOWHERE, rabbitmq_url]),
        result_backend="memory://",
        task_create_missing_queue_type="classic",
        task_default_queue_type="classic",
    )

    def note() -> None: ...

    task = app.task(name="note")(note)
    task.delay()

    async def enqueue() -> list[Any]:
        async with app:
            await task.enqueue()
            await task.using(delivery_mode=1).enqueue()
            return await collect(app.broker, 3, ["celery"])

    found = asyncio.run(enqueue())
    assert "fail over" not in caplog.text
    modes = [each.envelope.properties["delivery_mode"] for each in found]
    assert modes == [2, 2, 1]
