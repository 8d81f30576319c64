"""Publish and receive: order, fairness, limits, what is in an envelope, size and purge."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from itertools import chain

import pytest

from celeriac.brokers.base import Broker, Publication
from celeriac.errors import BrokerUnavailable, MalformedMessage
from celeriac.protocol.envelope import decode
from celeriac.protocol.message import Message
from celeriac.testing.contract.broker_fixtures import BrokerCases, NewBroker, PublishEnvelope, need
from celeriac.testing.contract.messages import acknowledged, collect, name_of, publication, receive

__all__ = ["DeliveryCases"]


class DeliveryCases(BrokerCases):
    """Messages go in, and come out once, in order."""

    async def test_delivers_in_the_order_of_publication(self, broker: Broker, other_broker: Broker) -> None:
        await broker.publish([publication("1"), publication("2")])
        await other_broker.publish([publication("3")])

        deliveries = await receive(other_broker)

        assert [name_of(delivery) for delivery in deliveries] == ["1", "2", "3"]
        assert {delivery.queue for delivery in deliveries} == {"contract"}
        assert {delivery.deliveries for delivery in deliveries} == {1}

    async def test_an_empty_queue_gives_nothing_at_once(self, broker: Broker) -> None:
        await broker.publish([])
        await broker.publish([publication("1", "another")])

        received = await broker.receive(["contract"], 10)

        assert not received.deliveries
        assert received.next_due is None

    async def test_delivers_higher_priority_first(self, broker: Broker) -> None:
        need(broker, "priority")
        await broker.publish([publication(f"{p}-{n}", priority=p) for n in range(2) for p in (3, 9, 0)])

        names = [name_of(delivery) for delivery in await receive(broker)]

        assert names == ["9-0", "9-1", "3-0", "3-1", "0-0", "0-1"]

    async def test_takes_no_more_than_the_limit(self, broker: Broker) -> None:
        await broker.publish([publication(str(n)) for n in range(5)])

        batches = [[name_of(delivery) for delivery in await receive(broker, 2)] for _ in range(4)]

        assert [len(batch) for batch in batches] == [2, 2, 1, 0]
        names = list(chain.from_iterable(batches))
        assert (names if broker.capabilities.ordered else sorted(names)) == ["0", "1", "2", "3", "4"]

    async def test_no_queue_starves_another(self, broker: Broker) -> None:
        queues = ["long", "short", "other"]
        await broker.publish([publication(f"long-{n}", "long") for n in range(100)])
        await broker.publish([publication("short-0", "short"), publication("other-0", "other")])

        many = Counter(delivery.queue for delivery in await receive(broker, 30, queues))

        assert many == {"long": 28, "short": 1, "other": 1}

    async def test_no_queue_starves_another_one_by_one(self, broker: Broker) -> None:
        queues = ["first", "second", "third"]
        await broker.publish([publication(f"{queue}-{n}", queue) for queue in queues for n in range(10)])

        single = Counter([(await receive(broker, 1, queues))[0].queue for _ in range(9)])

        assert single == {"first": 3, "second": 3, "third": 3}

    async def test_an_empty_queue_gives_its_turn_to_all_others(self, broker: Broker) -> None:
        queues = ["empty", "first", "second"]
        await broker.publish([publication(f"{queue}-{n}", queue) for queue in queues[1:] for n in range(20)])

        counts = Counter([delivery.queue for _ in range(6) for delivery in await receive(broker, 2, queues)])

        assert counts.total() == 12
        assert abs(counts["first"] - counts["second"]) <= 2

    async def test_an_envelope_carries_the_whole_message(self, broker: Broker) -> None:
        sent = Message(
            headers={
                "task": "contract.task",
                "id": "1",
                "shadow": "Grüße ☃ \U0001f600 \x00" + " \ud800" * broker.capabilities.any_text,
                "n": [1, None],
            },
            properties={"correlation_id": "1", "reply_to": "me", "delivery_mode": 2},
            body=bytes(range(256)),
            content_type="application/octet-stream",
            content_encoding="binary",
        )
        await broker.publish([Publication(sent, "contract", exchange="ex", routing_key="a.b")])

        (delivery,) = await receive(broker)

        envelope = delivery.envelope
        got = envelope if isinstance(envelope, Message) else decode(envelope)
        assert got.body == sent.body
        assert got.headers == sent.headers
        assert (got.content_type, got.content_encoding) == ("application/octet-stream", "binary")
        assert {name: got.properties[name] for name in sent.properties} == sent.properties
        delivery_info = got.properties["delivery_info"]
        # A broker that has exchanges of its own may tell the truth: it went to the queue by none.
        assert (delivery_info["exchange"], delivery_info["routing_key"]) in {("ex", "a.b"), ("", "contract")}

    async def test_carries_a_megabyte(self, broker: Broker) -> None:
        need(broker, "any_size")
        body = bytes(n % 251 for n in range(1_000_000))
        await broker.publish([Publication(Message({"id": "big", "task": "t"}, {}, body), "contract")])

        (delivery,) = await receive(broker)

        envelope = delivery.envelope
        assert (envelope if isinstance(envelope, Message) else decode(envelope)).body == body

    async def test_a_queue_may_have_any_name(self, broker: Broker) -> None:
        need(broker, "any_text")
        name = "Grüße 'quoted' \"twice\" a,b [0] {x}"
        await broker.publish([publication("1", name)])

        assert [delivery.queue for delivery in await receive(broker, queues=[name])] == [name]

    async def test_a_malformed_envelope_comes_with_its_batch(
        self, broker: Broker, publish_envelope: PublishEnvelope | None
    ) -> None:
        if publish_envelope is None:
            pytest.skip("No way to publish a malformed envelope is known.")
        await broker.publish([publication("1")])
        await publish_envelope("contract", "{ no JSON")
        await publish_envelope("contract", "")
        await broker.publish([publication("2")])

        deliveries = await receive(broker)

        names = []
        for delivery in deliveries:
            assert isinstance(delivery.envelope, bytes)
            try:
                names.append(name_of(delivery))
            except MalformedMessage:
                names.append("malformed")
        expected = ["1", "malformed", "malformed", "2"]
        assert names == expected if broker.capabilities.ordered else sorted(names) == sorted(expected)
        assert not await broker.settle(acknowledged(deliveries))

    async def test_publishes_all_or_none(self, broker: Broker) -> None:
        bad = Publication(Message({"id": "bad", "task": "t", "what": object()}, {}, b"[]"), "contract")

        with pytest.raises(TypeError):
            await broker.publish([publication("1"), bad, publication("2")])

        assert await broker.size("contract") == 0

    async def test_concurrent_receivers_never_get_the_same_message(
        self, broker: Broker, other_broker: Broker
    ) -> None:
        need(broker, "shared_view")
        names = [str(n) for n in range(400)]
        await broker.publish([publication(name) for name in names])

        async def consume(client: Broker) -> list[str]:
            seen = []
            while deliveries := await receive(client, 7):
                seen += [name_of(delivery) for delivery in deliveries]
                assert not await client.settle(acknowledged(deliveries))
            return seen

        seen = await asyncio.gather(*(consume(client) for client in (broker, other_broker) for _ in range(4)))

        assert sorted(chain.from_iterable(seen)) == sorted(names)

    async def test_size_counts_what_waits_to_be_delivered(self, broker: Broker) -> None:
        await broker.publish([publication("1"), publication("2"), publication("3", "another")])
        if broker.capabilities.delay:
            await broker.publish([publication("4", due=time.time() + 100)])
        assert await broker.size("contract") == 2

        await receive(broker, 1)

        assert await broker.size("contract") == 1
        assert await broker.size("unknown") == 0

    async def test_purge_deletes_what_waits_and_spares_what_is_leased(self, broker: Broker) -> None:
        await broker.publish([publication(str(n), priority=n) for n in range(3)])
        await broker.publish([publication("other", "another")])
        delayed = [publication("late", due=time.time() + 100)] if broker.capabilities.peek else []
        await broker.publish(delayed)
        leased = await receive(broker, 1)

        assert await broker.purge("contract") == 2 + len(delayed)

        assert await broker.purge("contract") == 0
        assert await receive(broker) == []
        assert not await broker.settle(acknowledged(leased))
        assert await broker.size("another") == 1

    async def test_a_closed_broker_says_so_and_opens_again(self, new_broker: NewBroker) -> None:
        broker = new_broker(30.0)
        with pytest.raises(BrokerUnavailable):
            await broker.publish([publication("0")])
        await broker.open()
        await broker.open()
        await broker.publish([publication("1")])
        await broker.close()
        await broker.close()
        with pytest.raises(BrokerUnavailable):
            await broker.receive(["contract"], 1)

        await broker.open()

        names = [name_of(delivery) for delivery in await receive(broker)]
        await broker.close()
        assert names == ["1"]

    async def test_collects_what_others_publish_meanwhile(self, broker: Broker, other_broker: Broker) -> None:
        async def publish() -> None:
            for n in range(50):
                await other_broker.publish([publication(str(n))])

        collected, _ = await asyncio.gather(collect(broker, 50), publish())

        names = [name_of(delivery) for delivery in collected]
        assert (names if broker.capabilities.ordered else sorted(names, key=int)) == [
            str(n) for n in range(50)
        ]
