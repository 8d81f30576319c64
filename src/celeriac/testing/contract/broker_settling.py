"""Settle: acknowledge, requeue, discard, dead-letter, and what is published in the same step."""

from __future__ import annotations

import time

from celeriac.brokers.base import Broker, Settlement
from celeriac.protocol.settlement import Action
from celeriac.testing.contract.broker_fixtures import BrokerCases, Connect, need
from celeriac.testing.contract.messages import acknowledged, collect, name_of, publication, receive

__all__ = ["SettlingCases"]


class SettlingCases(BrokerCases):
    """A delivery ends once, in one of four ways."""

    async def test_acknowledged_and_discarded_messages_are_gone(self, connect: Connect) -> None:
        broker = await connect(lease=0.2)
        need(broker, "lease")
        await broker.publish([publication("1"), publication("2"), publication("3")])
        first, second, _ = await receive(broker)

        void = await broker.settle(
            [Settlement(first.tag, Action.ACKNOWLEDGE), Settlement(second.tag, Action.DISCARD)]
        )

        assert not void
        assert [name_of(delivery) for delivery in await collect(broker, 1)] == ["3"]
        assert await broker.dead_letters() == []

    async def test_settles_nothing(self, broker: Broker) -> None:
        assert not await broker.settle([])
        assert not await broker.renew([])

    async def test_unknown_and_settled_tags_are_void(self, broker: Broker) -> None:
        await broker.publish([publication("1")])
        (delivery,) = await receive(broker)
        unknown = "99999.1"
        assert set(await broker.settle([*acknowledged([delivery]), Settlement(unknown, Action.DISCARD)])) == {
            unknown
        }

        assert set(await broker.settle(acknowledged([delivery]))) == {delivery.tag}
        assert set(await broker.renew([delivery.tag, "nonsense"])) == {delivery.tag, "nonsense"}

    async def test_a_requeued_message_is_delivered_again(self, broker: Broker, other_broker: Broker) -> None:
        need(broker, "shared_view")
        await broker.publish([publication("1")])
        (delivery,) = await receive(broker)

        assert not await broker.settle([Settlement(delivery.tag, Action.REQUEUE)])

        assert await broker.size("contract") == 1
        (again,) = await receive(other_broker)
        assert name_of(again) == "1"
        assert again.tag != delivery.tag
        if broker.capabilities.delivery_count:
            assert again.deliveries == 2

    async def test_a_requeued_delivery_is_void_before_anybody_has_the_message(self, broker: Broker) -> None:
        await broker.publish([publication("1")])
        (delivery,) = await receive(broker)
        await broker.settle([Settlement(delivery.tag, Action.REQUEUE)])

        assert set(await broker.settle(acknowledged([delivery]))) == {delivery.tag}

        if broker.capabilities.shared_view:
            assert await broker.size("contract") == 1

    async def test_a_requeue_that_does_not_count(self, broker: Broker) -> None:
        need(broker, "delivery_count")
        await broker.publish([publication("1")])
        tags = set()
        for _ in range(3):
            (delivery,) = await receive(broker)
            assert delivery.deliveries == 1
            tags.add(delivery.tag)
            assert not await broker.settle([Settlement(delivery.tag, Action.REQUEUE, counted=False)])

        assert len(tags) == 3
        assert set(await broker.settle([Settlement(tag, Action.DISCARD) for tag in tags])) == tags

    async def test_a_requeue_waits_until_it_is_due(self, broker: Broker) -> None:
        need(broker, "delay")
        await broker.publish([publication("1")])
        (delivery,) = await receive(broker)
        due = time.time() + 0.3
        await broker.settle([Settlement(delivery.tag, Action.REQUEUE, due=due)])

        assert await receive(broker) == []
        assert await broker.size("contract") == 0
        (again,) = await collect(broker, 1)

        assert time.time() >= due
        assert name_of(again) == "1"

    async def test_publishes_in_the_step_of_the_settlement(
        self, broker: Broker, other_broker: Broker
    ) -> None:
        need(broker, "shared_view")
        await broker.publish([publication("1"), publication("2")])
        first, second = await receive(broker)
        successors = (publication("1a"), publication("1b", "another"))

        void = await broker.settle(
            [
                Settlement(first.tag, Action.ACKNOWLEDGE, publications=successors),
                Settlement(second.tag, Action.REQUEUE, publications=(publication("2a"),)),
            ]
        )

        assert not void
        names = [name_of(delivery) for delivery in await receive(other_broker, 10, ["contract", "another"])]
        assert sorted(names) == ["1a", "1b", "2", "2a"]

    async def test_publishes_nothing_for_a_void_tag(self, broker: Broker) -> None:
        await broker.publish([publication("1"), publication("2")])
        first, second = await receive(broker)
        await broker.settle(acknowledged([first]))

        void = await broker.settle(
            [
                Settlement(first.tag, Action.ACKNOWLEDGE, publications=(publication("wrong"),)),
                Settlement(second.tag, Action.ACKNOWLEDGE, publications=(publication("right"),)),
            ]
        )

        assert set(void) == {first.tag}
        assert [name_of(delivery) for delivery in await receive(broker)] == ["right"]

    async def test_dead_letters_can_be_seen(self, broker: Broker, other_broker: Broker) -> None:
        need(broker, "dead_letters")
        await broker.publish([publication("1"), publication("2"), publication("3", "another")])
        first, second = await receive(broker)
        (third,) = await receive(broker, queues=["another"])
        start = time.time()
        for delivery in (first, second, third):
            assert not await broker.settle([Settlement(delivery.tag, Action.DEAD_LETTER, reason="it ☃ died")])

        letters = await other_broker.dead_letters()

        assert [letter.task_id for letter in letters] == ["3", "2", "1"]
        newest = letters[0]
        assert (newest.queue, newest.task, newest.reason) == ("another", "contract.task", "it ☃ died")
        assert newest.deliveries == 1
        assert start - 1 <= newest.at <= time.time() + 1
        assert newest.envelope == third.envelope
        assert [letter.task_id for letter in await broker.dead_letters("contract")] == ["2", "1"]
        assert [letter.task_id for letter in await broker.dead_letters(limit=2)] == ["3", "2"]

    async def test_dead_letters_are_not_delivered(self, connect: Connect) -> None:
        broker = await connect(lease=0.1)
        need(broker, "lease")
        need(broker, "dead_letters")
        await broker.publish([publication("1"), publication("2")])
        first, _ = await receive(broker)
        await broker.settle([Settlement(first.tag, Action.DEAD_LETTER, reason="died")])

        (again,) = await collect(broker, 1)

        assert name_of(again) == "2"
        await broker.settle(acknowledged([again]))  # before its short lease ends once more
        assert await broker.size("contract") == 0
        assert await broker.purge("contract") == 0
        assert len(await broker.dead_letters()) == 1
        assert set(await broker.settle(acknowledged([first]))) == {first.tag}

    async def test_a_replayed_dead_letter_starts_over(self, broker: Broker, other_broker: Broker) -> None:
        need(broker, "dead_letters")
        await broker.publish([publication("1"), publication("2")])
        deliveries = await receive(broker)
        await broker.settle([Settlement(d.tag, Action.DEAD_LETTER, reason="died") for d in deliveries])
        first, second = reversed(await broker.dead_letters())

        assert await other_broker.replay([first.id, "987654", "no id"]) == 1
        assert await other_broker.replay([first.id]) == 0

        (again,) = await receive(broker)
        assert name_of(again) == "1"
        assert again.deliveries == 1
        assert set(await broker.settle(acknowledged(deliveries))) == {delivery.tag for delivery in deliveries}
        assert [letter.id for letter in await broker.dead_letters()] == [second.id]
        assert not await broker.settle(acknowledged([again]))
