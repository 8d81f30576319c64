"""The dead letters on RabbitMQ: a queue, of which each look has to see all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio
from tests.services import RabbitMQServer

from celeriac.brokers.amqp import AMQPBroker
from celeriac.brokers.amqp_messages import burial, properties_of
from celeriac.brokers.amqp_publishing import Outgoing
from celeriac.brokers.amqp_topology import DEAD
from celeriac.errors import BrokerUnavailable
from celeriac.testing.contract.messages import collect, name_of, publication


@pytest_asyncio.fixture
async def broker(rabbitmq_url: str) -> AsyncIterator[AMQPBroker]:
    broker = AMQPBroker(rabbitmq_url)
    await broker.open()
    yield broker
    await broker.close()


async def bury(broker: AMQPBroker, names: Sequence[str], queue: str = "contract") -> None:
    """Leave dead letters as settlements leave them."""
    await broker._topology.queue(DEAD)
    batch = []
    for name in names:
        dead = publication(name, queue)
        headers = burial(dead, "tired", 5, f"id-{name}")
        properties = properties_of(dead.message, 0, broker._publishing.new_id(), headers)
        batch.append(Outgoing("", DEAD, properties, dead.message.body))
    await broker._publishing.send(batch)


@pytest.mark.timeout(90)
async def test_the_newest_of_very_many_are_seen(broker: AMQPBroker) -> None:
    await bury(broker, [str(n) for n in range(10_050)])
    letters = await broker.dead_letters(limit=3)
    assert [letter.id for letter in letters] == ["id-10049", "id-10048", "id-10047"]


async def test_replayed_ones_are_gone_and_the_others_stay_in_order(broker: AMQPBroker) -> None:
    await bury(broker, [str(n) for n in range(50)])
    assert await broker.replay(["id-49", "id-7", "id-nothing"]) == 2
    deliveries = await collect(broker, 2)
    assert {name_of(each) for each in deliveries} == {"49", "7"}
    letters = await broker.dead_letters("contract", limit=100)
    assert [letter.id for letter in letters] == [f"id-{n}" for n in range(48, -1, -1) if n != 7]
    assert not await broker.dead_letters("another")


async def test_looks_of_one_process_do_not_hide_letters_from_each_other(broker: AMQPBroker) -> None:
    await bury(broker, ["1", "2", "3"])
    found = await asyncio.gather(*(broker.dead_letters() for _ in range(5)))
    assert [[letter.id for letter in letters] for letters in found] == [["id-3", "id-2", "id-1"]] * 5


async def test_a_replay_that_went_in_part_is_not_told_as_one_that_did_not(rabbitmq_url: str) -> None:
    """Who puts the records back on hearing that would put back one whose task runs."""
    classic = {"x-queue-type": "classic"}
    narrow = {**classic, "x-max-length": 1, "x-overflow": "reject-publish"}
    broker = AMQPBroker(rabbitmq_url, queue_arguments=lambda queue: narrow if queue == "narrow" else classic)
    await broker.open()
    await broker.publish([publication("first", "narrow")])
    await bury(broker, ["1"])
    await bury(broker, ["2"], "narrow")
    with pytest.raises(BrokerUnavailable, match="its queue is full") as caught:
        await broker.replay(["id-1", "id-2"])
    assert caught.value.unconfirmed
    assert await broker.size("contract") == 1
    with pytest.raises(BrokerUnavailable, match="its queue is full") as caught:
        await broker.replay(["id-2"])
    assert not caught.value.unconfirmed
    await broker.close()


async def test_messages_that_others_have_put_there_are_passed_over(broker: AMQPBroker) -> None:
    await bury(broker, ["1"])
    strange = publication("strange").message
    await broker._publishing.send(
        [Outgoing("", DEAD, properties_of(strange, 0, broker._publishing.new_id()), strange.body)]
    )
    assert [letter.id for letter in await broker.dead_letters()] == ["id-1"]


def limited(rabbitmq: RabbitMQServer, url: str, definition: dict[str, Any]) -> None:
    """Have a policy for the queue of the contract."""
    policy = {"pattern": "^contract$", "definition": definition, "apply-to": "queues"}
    rabbitmq.api("PUT", f"policies/{url.rpartition('/')[2]}/limit", policy)


async def fail(broker: AMQPBroker, times: int) -> list[int]:
    """Lose the connection so often with a message that has come. Returns how often it had been delivered."""
    counts = []
    for _ in range(times):
        (delivery,) = await collect(broker, 1)
        counts.append(delivery.deliveries)
        await broker._in.drop()
    return counts


async def test_a_limit_of_rabbitmqs_own_drops_no_message(
    rabbitmq: RabbitMQServer, rabbitmq_url: str, broker: AMQPBroker
) -> None:
    limited(rabbitmq, rabbitmq_url, {"delivery-limit": 12})
    await broker.publish([publication("1")])
    assert await fail(broker, 24) == list(range(1, 25))


async def test_a_limit_that_a_queue_is_declared_with_drops_no_message(rabbitmq_url: str) -> None:
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": 2}
    broker = AMQPBroker(rabbitmq_url, queue_arguments=lambda _: arguments)
    await broker.open()
    await broker.publish([publication("1")])
    assert await fail(broker, 7) == list(range(1, 8))
    await broker.close()


async def test_a_limit_with_a_dead_letter_exchange_is_left_to_rabbitmq(rabbitmq_url: str) -> None:
    limited = {
        "x-queue-type": "quorum",
        "x-delivery-limit": 2,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "hospital",
    }
    broker = AMQPBroker(rabbitmq_url, queue_arguments=lambda queue: limited if queue == "contract" else {})
    await broker.open()
    await broker._topology.queue("hospital")
    await broker.publish([publication("1")])
    assert await fail(broker, 3) == [1, 2, 3]
    (delivery,) = await collect(broker, 1, ["hospital"])
    assert name_of(delivery) == "1"
    await broker.close()


async def test_what_rabbitmq_gave_up_by_a_policy_is_listed_and_replayed(
    rabbitmq: RabbitMQServer, rabbitmq_url: str, broker: AMQPBroker
) -> None:
    policy = {"delivery-limit": 1, "dead-letter-exchange": "", "dead-letter-routing-key": DEAD}
    limited(rabbitmq, rabbitmq_url, policy)
    await broker.dead_letters()  # the queue is there from then on
    await broker.publish([publication("1"), publication("2")])
    for _ in range(2):
        await collect(broker, 2)
        await broker._in.drop()
    async with asyncio.timeout(10):
        while len(letters := await broker.dead_letters("contract")) < 2:
            await asyncio.sleep(0.01)
    assert {letter.task_id for letter in letters} == {"1", "2"}
    assert {letter.reason for letter in letters} == {"RabbitMQ gave it up: delivery_limit"}
    assert letters == await broker.dead_letters("contract")
    (chosen,) = (letter.id for letter in letters if letter.task_id == "2")
    assert await broker.replay([chosen]) == 1
    (again,) = await collect(broker, 1)
    assert (name_of(again), again.deliveries) == ("2", 1)
    assert [letter.task_id for letter in await broker.dead_letters()] == ["1"]
