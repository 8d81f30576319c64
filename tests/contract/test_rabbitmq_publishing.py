"""What RabbitMQ says of messages that it cannot take, or cannot take yet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from urllib.parse import quote

import pytest
import pytest_asyncio
from tests.services import RabbitMQServer

from celeriac import Celery
from celeriac.brokers.amqp import AMQPBroker
from celeriac.brokers.base import PartlyPublished, Settlement
from celeriac.errors import BrokerUnavailable
from celeriac.protocol.exchanges import binding
from celeriac.protocol.settlement import Action
from celeriac.testing.contract.messages import collect, name_of, publication, receive

VIDEOS = binding("media", "topic", "video.#", "contract")


@pytest_asyncio.fixture
async def broker(rabbitmq_url: str) -> AsyncIterator[AMQPBroker]:
    broker = AMQPBroker(rabbitmq_url)
    await broker.open()
    yield broker
    await broker.close()


async def delete(rabbitmq: RabbitMQServer, url: str, what: str, name: str) -> None:
    path = f"{what}/{url.rpartition('/')[2]}/{quote(name, safe='')}"
    await asyncio.to_thread(rabbitmq.api, "DELETE", path)


@pytest_asyncio.fixture(params=["quorum", "classic"])
async def full(request: pytest.FixtureRequest, rabbitmq_url: str) -> AsyncIterator[AMQPBroker]:
    """A broker whose queue has no room for a second message."""
    arguments = {"x-queue-type": request.param, "x-max-length": 1, "x-overflow": "reject-publish"}
    broker = AMQPBroker(rabbitmq_url, queue_arguments=lambda _: arguments)
    await broker.open()
    for n in range(20):  # a quorum queue takes a few more than it should
        try:
            await broker.publish([publication(f"first-{n}")])
        except BrokerUnavailable:
            break
    yield broker
    await broker.close()


async def test_a_stream_is_refused_before_a_task_is_lost_in_it(rabbitmq_url: str) -> None:
    broker = AMQPBroker(rabbitmq_url, queue_arguments=lambda _: {"x-queue-type": "stream"})
    await broker.open()
    with pytest.raises(BrokerUnavailable, match="is a stream") as caught:
        await broker.publish([publication("1")])
    assert caught.value.permanent
    await broker.close()


async def test_a_full_queue_is_named(full: AMQPBroker) -> None:
    with pytest.raises(BrokerUnavailable, match="its queue is full") as caught:
        await full.publish([publication("second")])
    assert not caught.value.permanent


async def test_what_is_not_taken_for_a_moment_is_sent_again(
    full: AMQPBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = []

    async def make_room(seconds: float) -> None:
        pauses.append(seconds)
        await full.purge("contract")

    monkeypatch.setattr(full._publishing, "_pause", make_room)
    await full.publish([publication("second")])
    assert pauses
    assert [name_of(each) for each in await collect(full, 1)] == ["second"]


async def test_a_full_queue_costs_its_neighbours_nothing(full: AMQPBroker) -> None:
    free = publication("free", "free", bindings=())
    with pytest.raises(PartlyPublished, match="its queue is full") as caught:
        await full.publish([free, publication("second")])
    assert caught.value.published == {0}
    assert [name_of(each) for each in await receive(full, queues=["free"])] == ["free"]


async def test_calls_of_one_tick_do_not_pay_for_each_other(rabbitmq_url: str) -> None:
    app = Celery("client", broker=rabbitmq_url, backend="memory://partly", set_as_current=False)
    async with app:
        await app.broker.bind([VIDEOS])
        calls = [
            app.enqueue("video", exchange="media", exchange_type="topic", routing_key="video.x"),
            app.enqueue("lost", exchange="media", exchange_type="topic", routing_key="image"),
            app.enqueue("plain", queue="contract"),
            app.enqueue("huge", queue="contract", headers={"x": "x" * 200_000}),
        ]
        video, lost, plain, huge = await asyncio.gather(*calls, return_exceptions=True)
        assert type(lost).__name__ == "QueueNotFound"
        assert isinstance(huge, TypeError)
        assert "put less into them" in str(huge)
        for handle in (video, plain):
            assert (await handle.record()).state == "PENDING"  # type: ignore[union-attr]
        deliveries = await collect(app.broker, 2)
        assert sorted(each.envelope.headers["task"] for each in deliveries) == ["plain", "video"]  # type: ignore[union-attr]
        assert not await receive(app.broker)  # type: ignore[arg-type]


async def test_what_a_settlement_has_published_is_not_published_again(
    full: AMQPBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await full.publish([publication("work", "free")])
    [delivery] = await receive(full, queues=["free"])
    following = tuple(
        publication(name, queue) for name, queue in (("next", "following"), ("stuck", "contract"))
    )
    settlement = Settlement(delivery.tag, Action.ACKNOWLEDGE, publications=following)
    for _ in range(3):
        with pytest.raises(BrokerUnavailable, match="full"):
            await full.settle([settlement])
    await full.purge("contract")
    assert not await full.settle([settlement])
    assert [name_of(each) for each in await receive(full, queues=["following"])] == ["next"]
    assert "stuck" in {name_of(each) for each in await receive(full)}


async def test_what_was_deleted_meanwhile_is_declared_again(
    broker: AMQPBroker, rabbitmq: RabbitMQServer, rabbitmq_url: str
) -> None:
    def video(name: str) -> object:
        return publication(
            name, "", exchange="media", exchange_type="topic", routing_key="video.x", bindings=(VIDEOS,)
        )

    await broker.publish([video("1"), publication("2", "another", due=time.time() + 1.5)])  # type: ignore[list-item]
    await delete(rabbitmq, rabbitmq_url, "queues", "contract")
    await broker.publish([video("3")])  # type: ignore[list-item]
    await delete(rabbitmq, rabbitmq_url, "exchanges", "media")
    await broker.publish([video("4")])  # type: ignore[list-item]
    for name in ("celery_delayed_27", "celery_delayed_delivery"):
        await delete(rabbitmq, rabbitmq_url, "exchanges", name)
    await broker.publish([publication("5", "other", due=time.time() + 1.5)])
    assert [name_of(each) for each in await collect(broker, 2)] == ["3", "4"]
    assert [name_of(each) for each in await collect(broker, 1, ["other"])] == ["5"]


async def test_what_waits_for_its_time_finds_a_queue_that_was_made_anew(
    broker: AMQPBroker, rabbitmq: RabbitMQServer, rabbitmq_url: str
) -> None:
    await broker.publish([publication("late", due=time.time() + 4)])
    await delete(rabbitmq, rabbitmq_url, "queues", "contract")
    other = AMQPBroker(rabbitmq_url)
    await other.open()
    assert [name_of(each) for each in await collect(other, 1)] == ["late"]
    await other.close()
