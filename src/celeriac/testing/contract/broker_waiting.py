"""Wait and delay: a consumer sleeps until there is something for it, and not longer."""

from __future__ import annotations

import asyncio
import time

import pytest

from celeriac.brokers.base import Broker, Settlement
from celeriac.protocol.settlement import Action
from celeriac.testing.contract.broker_fixtures import BrokerCases, Connect, need
from celeriac.testing.contract.messages import collect, name_of, publication, receive

__all__ = ["WaitingCases"]

#: Seconds within which a wait that should end at once has ended on any machine.
_SOON = 5.0


class WaitingCases(BrokerCases):
    """No message waits for a sleeping consumer, and no consumer runs in circles."""

    async def test_wait_returns_at_once_for_what_is_there(self, broker: Broker) -> None:
        await broker.publish([publication("1")])

        async with asyncio.timeout(_SOON):
            await broker.wait(["empty", "contract"])

    async def test_wait_wakes_when_another_client_publishes(
        self, broker: Broker, other_broker: Broker
    ) -> None:
        for n in range(5):
            waiting = asyncio.create_task(broker.wait(["contract"]))
            done, _ = await asyncio.wait([waiting], timeout=0.02)
            assert not done
            await other_broker.publish([publication(str(n))])
            async with asyncio.timeout(_SOON):
                await waiting
            assert len(await receive(broker)) == 1

    async def test_nothing_is_missed_between_receive_and_wait(
        self, broker: Broker, other_broker: Broker
    ) -> None:
        for n in range(20):
            assert await receive(broker) == []
            await other_broker.publish([publication(str(n))])
            async with asyncio.timeout(_SOON):
                await broker.wait(["contract"])
            assert len(await receive(broker)) == 1

    async def test_wait_returns_after_its_timeout(self, broker: Broker, other_broker: Broker) -> None:
        start = time.monotonic()
        waiting = asyncio.create_task(broker.wait(["contract"], timeout=0.3))
        await other_broker.publish([publication("1", "another")])
        async with asyncio.timeout(_SOON):
            await waiting
            await broker.wait(["contract"], timeout=0)
        assert time.monotonic() - start < _SOON

    async def test_what_is_delayed_can_be_looked_at(self, broker: Broker) -> None:
        need(broker, "peek")
        soon = time.time() + 3600
        await broker.publish(
            [
                publication("now"),
                publication("later", due=soon + 60, priority=5),
                publication("soon", due=soon),
                publication("elsewhere", "another", due=soon),
            ]
        )

        found = await broker.delayed("contract")

        assert [each.due for each in found] == pytest.approx([soon, soon + 60])
        assert [name_of(each) for each in found] == ["soon", "later"]
        assert [name_of(each) for each in await broker.delayed("contract", 1)] == ["soon"]
        assert await broker.delayed("empty") == []

    async def test_wait_may_be_cancelled(self, broker: Broker) -> None:
        waiting = asyncio.create_task(broker.wait(["contract"]))
        await asyncio.wait([waiting], timeout=0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

        await broker.publish([publication("1")])
        assert len(await collect(broker, 1)) == 1

    async def test_all_who_wait_wake(self, broker: Broker, other_broker: Broker) -> None:
        need(broker, "shared_view")
        clients = [broker, other_broker]
        waiting = [asyncio.create_task(client.wait([queue])) for client in clients for queue in ("a", "b")]
        await asyncio.wait(waiting, timeout=0.05)

        await broker.publish([publication("1", "a"), publication("2", "b")])

        async with asyncio.timeout(_SOON):
            await asyncio.gather(*waiting)

    async def test_wait_wakes_for_a_requeue(self, broker: Broker, other_broker: Broker) -> None:
        need(broker, "shared_view")
        await broker.publish([publication("1")])
        (delivery,) = await receive(broker)
        waiting = asyncio.create_task(other_broker.wait(["contract"]))
        await asyncio.wait([waiting], timeout=0.05)

        await broker.settle([Settlement(delivery.tag, Action.REQUEUE)])

        async with asyncio.timeout(_SOON):
            await waiting

    async def test_wait_wakes_for_a_replay(self, broker: Broker, other_broker: Broker) -> None:
        need(broker, "shared_view")
        need(broker, "dead_letters")
        await broker.publish([publication("1")])
        (delivery,) = await receive(broker)
        await broker.settle([Settlement(delivery.tag, Action.DEAD_LETTER, reason="died")])
        waiting = asyncio.create_task(other_broker.wait(["contract"]))
        await asyncio.wait([waiting], timeout=0.05)

        await broker.replay([letter.id for letter in await broker.dead_letters()])

        async with asyncio.timeout(_SOON):
            await waiting

    async def test_wait_wakes_when_a_lease_ends(self, broker: Broker, connect: Connect) -> None:
        need(broker, "lease")
        silent = await connect(lease=0.3)
        await silent.publish([publication("1")])
        await receive(silent)

        async with asyncio.timeout(_SOON):
            assert len(await collect(broker, 1)) == 1

    async def test_delayed_messages_come_when_they_are_due(
        self, broker: Broker, other_broker: Broker
    ) -> None:
        need(broker, "delay")
        now = time.time()
        due = {"late": now + 0.95, "early": now + 0.6, "past": now - 10}
        await broker.publish([publication(name, due=at) for name, at in due.items()])

        arrived = {}
        for _ in due:
            (delivery,) = await collect(other_broker, 1)
            arrived[name_of(delivery)] = time.time()

        assert set(arrived) == set(due)
        if broker.capabilities.ordered:
            assert list(arrived) == ["past", "early", "late"]
        for name, at in due.items():
            assert arrived[name] >= at

    async def test_next_due_tells_when_to_come_back(self, broker: Broker) -> None:
        need(broker, "peek")
        need(broker, "delay")
        soon, later = time.time() + 50, time.time() + 100
        await broker.publish([publication("1", due=later), publication("2", due=soon), publication("3")])

        received = await broker.receive(["contract"], 0)

        assert received.next_due == pytest.approx(soon, abs=0.01)

    async def test_a_new_delay_shortens_a_running_wait(self, broker: Broker, other_broker: Broker) -> None:
        need(broker, "delay")
        await broker.publish([publication("later", due=time.time() + 100)])
        coming = asyncio.create_task(collect(broker, 1))
        await asyncio.wait([coming], timeout=0.05)

        await other_broker.publish([publication("soon", due=time.time() + 0.2)])

        async with asyncio.timeout(_SOON):
            assert [name_of(delivery) for delivery in await coming] == ["soon"]
