"""What RabbitMQ says of messages that it cannot take, or cannot take yet."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from celeriac.brokers.amqp import AMQPBroker
from celeriac.errors import BrokerUnavailable
from celeriac.testing.contract.messages import collect, name_of, publication


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
