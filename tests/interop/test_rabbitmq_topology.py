"""Queues, exchanges and bindings in RabbitMQ are those that stock Celery makes of the same settings."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import celery
import kombu
import pytest
from celery.exceptions import QueueNotFound
from kombu import Exchange, Queue
from tests.services import RabbitMQServer

from celeriac import Celery
from celeriac.brokers.urls import load_driver
from celeriac.errors import BrokerUnavailable, ConfigurationError
from celeriac.testing.contract.messages import collect, name_of, publication

load_driver("amqp://")

NewApp = Callable[..., Celery]


@pytest.fixture
def new_app(rabbitmq_url: str) -> NewApp:
    def new(**conf: Any) -> Celery:
        app = Celery("ours", broker=rabbitmq_url, backend="memory://", set_as_current=False)
        app.conf.update(conf)
        return app

    return new


def stock_declares(url: str, **conf: Any) -> None:
    """What a stock worker declares at its start, which RabbitMQ refuses where it differs from what is there."""
    app = celery.Celery("stock", broker=url, set_as_current=False)
    app.conf.update(conf)
    with app.connection_for_write() as connection, connection.channel() as channel:
        for queue in app.amqp.queues.values():
            queue(channel).declare()


async def sizes(app: Celery, expected: dict[str, int]) -> None:
    """Wait until the queues have so many messages, and no other."""
    async with asyncio.timeout(10):
        while {name: await app.queue_size(name) for name in expected} != expected:
            await asyncio.sleep(0.02)


def described(rabbitmq: RabbitMQServer, url: str, what: str) -> Any:
    return rabbitmq.api("GET", f"{what}/{url.rpartition('/')[2]}")


async def test_headers_decide(new_app: NewApp, rabbitmq_url: str) -> None:
    documents = Exchange("documents", type="headers")

    def queues() -> list[Queue]:
        return [
            Queue("both", documents, binding_arguments={"x-match": "all", "kind": "pdf", "urgent": True}),
            Queue(
                "either",
                [kombu.binding(documents, arguments={"x-match": "any", "kind": "pdf", "urgent": True})],
            ),
        ]

    app = new_app(task_queues=queues())
    async with app:
        await app.enqueue(
            "t", exchange="documents", exchange_type="headers", headers={"kind": "pdf", "urgent": True}
        )
        await app.enqueue(
            "t", exchange="documents", exchange_type="headers", headers={"kind": "pdf", "urgent": False}
        )
        await sizes(app, {"both": 1, "either": 2})
        with pytest.raises(QueueNotFound):
            await app.enqueue("t", exchange="documents", exchange_type="headers", headers={"kind": "text"})
        before = time.time()
        await app.enqueue(
            "later", exchange="documents", exchange_type="headers", headers={"kind": "pdf"}, countdown=1
        )
        await app.broker.receive(["either"], 2)
        (delivery,) = await collect(app.broker, 1, ["either"])
        assert time.time() >= before + 1
        assert delivery.envelope.headers["task"] == "later"  # type: ignore[union-attr]
    await asyncio.to_thread(stock_declares, rabbitmq_url, task_queues=queues())


async def test_headers_exchanges_are_refused_elsewhere() -> None:
    app = Celery("ours", broker="memory://headers", set_as_current=False)
    app.conf.task_queues = [
        Queue("pdf", Exchange("documents", type="headers"), binding_arguments={"kind": "pdf"})
    ]
    async with app:
        with pytest.raises(ConfigurationError, match="type headers, which RabbitMQ alone has"):
            await app.enqueue("t", exchange="documents", exchange_type="headers", headers={"kind": "pdf"})


async def test_flags_and_options_are_the_settings(
    new_app: NewApp, rabbitmq: RabbitMQServer, rabbitmq_url: str
) -> None:
    def queues() -> list[Queue]:
        other = Exchange("other", durable=False, auto_delete=True)
        fallen = Exchange("media", type="topic", arguments={"alternate-exchange": "rest"})
        return [
            Queue("brief", other, routing_key="brief", durable=False, auto_delete=True),
            Queue("videos", fallen, routing_key="video.#", max_priority=5, expires=3600.0),
            Queue("own", Exchange("amq.topic", type="topic"), routing_key="own"),
        ]

    app = new_app(task_queues=queues())
    async with app:
        for name in ("brief", "videos", "own"):
            await app.enqueue("t", queue=name)
            await sizes(app, {name: 1})
    await asyncio.to_thread(stock_declares, rabbitmq_url, task_queues=queues())
    exchanges = {each["name"]: each for each in described(rabbitmq, rabbitmq_url, "exchanges")}
    assert not exchanges["other"]["durable"]
    assert exchanges["media"]["arguments"] == {"alternate-exchange": "rest"}


async def test_what_others_declare_is_left_to_them(new_app: NewApp, rabbitmq_url: str) -> None:
    with kombu.Connection(rabbitmq_url) as connection:
        await asyncio.to_thread(
            Queue("theirs", queue_arguments={"x-max-length": 7})(connection.channel()).declare
        )
    app = new_app(task_queues=[Queue("theirs", Exchange(""), routing_key="theirs", no_declare=True)])
    async with app:
        await app.enqueue("t", queue="theirs")
        await sizes(app, {"theirs": 1})


async def test_all_queues_have_priorities_where_the_settings_say_so(
    new_app: NewApp, rabbitmq_url: str
) -> None:
    app = new_app(task_queue_max_priority=9)
    async with app:
        for priority in (1, 9):
            await app.enqueue(f"t{priority}", queue="made.up", priority=priority)
        await app.enqueue("t")
        tasks = [each.envelope.headers["task"] for each in await collect(app.broker, 2, ["made.up"])]  # type: ignore[union-attr]
        assert tasks == ["t9", "t1"]
        assert app.broker.capabilities.priority
    await asyncio.to_thread(stock_declares, rabbitmq_url, task_queue_max_priority=9)


async def test_quorum_queues_with_priorities_are_refused_in_one_sentence(new_app: NewApp) -> None:
    app = new_app(task_queue_max_priority=9, task_create_missing_queue_type="quorum")
    async with app:
        with pytest.raises(BrokerUnavailable, match="leave out task_queue_max_priority") as caught:
            await app.enqueue("t", queue="made.up")
        assert caught.value.permanent


async def test_delays_wait_in_queues_of_the_type_of_the_settings(
    new_app: NewApp, rabbitmq: RabbitMQServer, rabbitmq_url: str
) -> None:
    app = new_app(broker_native_delayed_delivery_queue_type="classic")
    async with app:
        await app.enqueue("t", countdown=60)
    queues = await asyncio.to_thread(described, rabbitmq, rabbitmq_url, "queues")
    kinds = {each["type"] for each in queues if each["name"].startswith("celery_delayed_")}
    assert kinds == {"classic"}
    async with new_app() as other:
        with pytest.raises(BrokerUnavailable, match="set broker_native_delayed_delivery_queue_type"):
            await other.enqueue("t", countdown=60)


async def test_a_delayed_message_for_an_exchange_that_others_have_bound_is_not_lost(
    new_app: NewApp, rabbitmq_url: str
) -> None:
    theirs = Queue(
        "theirs",
        Exchange("media", type="topic"),
        routing_key="video.#",
        queue_arguments={"x-queue-type": "quorum"},
    )
    with kombu.Connection(rabbitmq_url) as connection:
        await asyncio.to_thread(theirs(connection.channel()).declare)
    async with new_app() as app:
        due = time.time() + 3
        late = publication(
            "late", "", exchange="media", exchange_type="topic", routing_key="video.x", due=due
        )
        await app.broker.publish([late])
        (delivery,) = await collect(app.broker, 1, ["theirs"])
        assert time.time() >= due
        assert name_of(delivery) == "late"
        lost = publication("lost", "", exchange="media", exchange_type="topic", routing_key="y", due=due + 9)
        with pytest.raises(QueueNotFound):
            await app.broker.publish([lost])


async def test_names_that_the_driver_cannot_express(new_app: NewApp) -> None:
    async with new_app() as app:
        await app.enqueue("t", queue="a name with spaces")
        await sizes(app, {"a name with spaces": 1})
        for name in ("grün", "q" * 300):
            with pytest.raises(BrokerUnavailable, match="letters, digits, spaces and"):
                await app.enqueue("t", queue=name)
