"""Exchanges: which queues get a message that names none."""

from __future__ import annotations

import pytest
from celery.exceptions import QueueNotFound

from celeriac.brokers.base import Broker, Settlement
from celeriac.protocol.envelope import decode
from celeriac.protocol.exchanges import binding
from celeriac.protocol.message import Message
from celeriac.protocol.settlement import Action
from celeriac.testing.contract.broker_fixtures import BrokerCases
from celeriac.testing.contract.messages import name_of, publication, receive

__all__ = ["ExchangeCases"]

VIDEOS = binding("media", "topic", "media.video.#", "videos")
ALL = binding("media", "topic", "media.#", "all")
KEYED = binding("keyed", "direct", "the-key", "contract")


class ExchangeCases(BrokerCases):
    """A message for an exchange reaches the queues that are bound to it, whoever bound them."""

    async def test_every_bound_queue_gets_a_copy(self, broker: Broker, other_broker: Broker) -> None:
        await other_broker.bind([VIDEOS, ALL, KEYED])
        await other_broker.bind([VIDEOS])
        await broker.publish(
            [
                publication("video", "", exchange="media", routing_key="media.video.short.x"),
                publication("image", "", exchange="media", routing_key="media.image"),
                publication("plain"),
                publication("keyed", "", exchange="keyed", routing_key="the-key"),
            ]
        )

        found = {queue: await receive(broker, queues=[queue]) for queue in ("videos", "all", "contract")}

        names = {queue: [name_of(each) for each in deliveries] for queue, deliveries in found.items()}
        names["contract"].sort()  # they went different ways
        in_all = ["video", "image"] if broker.capabilities.ordered else ["image", "video"]
        assert names == {"videos": ["video"], "all": in_all, "contract": ["keyed", "plain"]}
        envelope = found["videos"][0].envelope
        message = envelope if isinstance(envelope, Message) else decode(envelope)
        assert message.properties["delivery_info"]["exchange"] == "media"
        assert message.properties["delivery_info"]["routing_key"] == "media.video.short.x"
        if broker.capabilities.lists_bindings:
            assert set(await broker.bindings("media")) == {VIDEOS, ALL}

    async def test_what_the_publisher_knows_counts_too(self, broker: Broker, other_broker: Broker) -> None:
        await other_broker.bind([KEYED])
        known = (binding("keyed", "direct", "the-key", "known"), KEYED)
        new = publication("1", "", exchange="keyed", routing_key="the-key", bindings=known)
        await broker.publish([new])

        for queue in ("contract", "known"):
            assert [name_of(each) for each in await receive(broker, queues=[queue])] == ["1"]
        if broker.capabilities.lists_bindings:
            assert set(await broker.bindings("keyed")) == {KEYED}

    async def test_a_message_that_no_queue_gets_is_refused_with_its_batch(self, broker: Broker) -> None:
        lost = publication("lost", "", exchange="nowhere", routing_key="k")
        with pytest.raises(QueueNotFound, match="nowhere"):
            await broker.publish([publication("1"), lost])
        assert not await receive(broker)

        for_all = publication("all", "", exchange="nobody", exchange_type="fanout")
        await broker.publish([for_all, publication("2")])
        assert [name_of(each) for each in await receive(broker)] == ["2"]

    async def test_what_a_settlement_publishes_goes_through_exchanges(self, broker: Broker) -> None:
        await broker.bind([VIDEOS, ALL])
        await broker.publish([publication("first")])
        [delivery] = await receive(broker)
        retry = publication("again", "", exchange="media", routing_key="media.video.x")
        assert not await broker.settle(
            [Settlement(delivery.tag, Action.ACKNOWLEDGE, publications=(retry, publication("plain")))]
        )

        for queue, name in (("videos", "again"), ("all", "again"), ("contract", "plain")):
            assert [name_of(each) for each in await receive(broker, queues=[queue])] == [name]
