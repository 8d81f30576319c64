"""Leases: whose message it is, for how long, and what happens when a consumer falls silent."""

from __future__ import annotations

import asyncio
import time

from celeriac.brokers.base import Broker, Settlement
from celeriac.protocol.settlement import Action
from celeriac.testing.contract.broker_fixtures import BrokerCases, Connect, need
from celeriac.testing.contract.messages import acknowledged, collect, name_of, publication, receive

__all__ = ["LeaseCases"]


class LeaseCases(BrokerCases):
    """A message whose consumer falls silent is delivered again, and no message is delivered twice before."""

    async def test_a_leased_message_is_nobody_elses(self, broker: Broker, other_broker: Broker) -> None:
        need(broker, "lease")
        await broker.publish([publication("1")])
        start = time.time()
        received = await broker.receive(["contract"], 1)
        assert received.next_due is not None
        assert start + 29 < received.next_due < time.time() + 31

        assert await receive(other_broker) == []

    async def test_an_ended_lease_gives_the_message_to_the_next(
        self, broker: Broker, connect: Connect
    ) -> None:
        need(broker, "lease")
        silent = await connect(lease=0.3)
        await silent.publish([publication("1"), publication("2")])
        first, second = await receive(silent)
        await silent.settle(acknowledged([first]))

        (again,) = await collect(broker, 1)

        assert name_of(again) == "2"
        if broker.capabilities.delivery_count:
            assert again.deliveries == 2
        assert again.tag != second.tag

    async def test_a_late_consumer_settles_nothing(self, broker: Broker, connect: Connect) -> None:
        need(broker, "lease")
        late = await connect(lease=0.1)
        await late.publish([publication("1")])
        (delivery,) = await receive(late)
        (again,) = await collect(broker, 1)

        void = await late.settle(
            [Settlement(delivery.tag, Action.REQUEUE, publications=(publication("wrong"),))]
        )

        assert set(void) == {delivery.tag}
        assert set(await late.renew([delivery.tag])) == {delivery.tag}
        assert await receive(broker) == []
        assert not await broker.settle(acknowledged([again]))

    async def test_a_renewed_lease_holds(self, broker: Broker, connect: Connect) -> None:
        need(broker, "lease")
        consumer = await connect(lease=1.0)
        await consumer.publish([publication("1"), publication("2")])
        renewed, _ = await receive(consumer)
        # Until the other message comes back, the renewed one has outlived its first lease.
        coming = asyncio.create_task(collect(broker, 1))
        while not coming.done():
            assert not await consumer.renew([renewed.tag])
            await asyncio.wait([coming], timeout=0.2)

        assert [name_of(delivery) for delivery in coming.result()] == ["2"]
        assert not await consumer.settle(acknowledged([renewed]))

    async def test_counts_every_delivery(self, broker: Broker, connect: Connect) -> None:
        need(broker, "lease")
        need(broker, "delivery_count")
        crashing = await connect(lease=0.05)
        await crashing.publish([publication("1")])

        counts = [(await collect(crashing, 1))[0].deliveries for _ in range(4)]

        assert counts == [1, 2, 3, 4]

    async def test_a_close_leaves_leases_to_end(self, broker: Broker, connect: Connect) -> None:
        need(broker, "lease")
        closing = await connect(lease=0.3)
        await closing.publish([publication("1")])
        await receive(closing)
        await closing.close()

        assert [name_of(delivery) for delivery in await collect(broker, 1)] == ["1"]
