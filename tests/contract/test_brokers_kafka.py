"""The broker contract on Kafka and ZooKeeper, with SQLite as the keeper."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from functools import partial

import pytest
from confluent_kafka import Producer
from kazoo.client import KazooClient
from tests.services import KafkaServer, ZooKeeperServer

from celeriac.brokers.base import Broker
from celeriac.brokers.kombu import KombuBroker
from celeriac.brokers.kombu_sources.kafka import KafkaSource
from celeriac.brokers.kombu_sources.zookeeper import ZooKeeperSource
from celeriac.brokers.sql import SQLBroker
from celeriac.testing.contract.broker import BrokerContract
from celeriac.testing.contract.broker_fixtures import NewBroker, PublishEnvelope
from celeriac.testing.contract.messages import collect, publication, receive

#: Seconds after which something that should have happened has not.
_PATIENCE = 20.0


class OwnTopics(KafkaSource):
    """A Kafka that this test has to itself: its server has one namespace for all."""

    prefix = ""

    def topic_of(self, queue: str) -> str:
        return super().topic_of(f"{self.prefix}{queue}")


class TestKafka(BrokerContract):
    @pytest.fixture
    def kind(self) -> type[OwnTopics]:
        return type("Own", (OwnTopics,), {"prefix": f"{secrets.token_hex(4)}-"})

    @pytest.fixture
    def new_broker(self, kafka: KafkaServer, kind: type[OwnTopics], database_url: str) -> NewBroker:
        options = {"num_partitions": 1}
        return lambda lease: KombuBroker(
            partial(kind, kafka.url, options=options, lease=lease), SQLBroker(database_url, lease=lease)
        )

    @pytest.fixture
    def publish_envelope(self, kafka: KafkaServer, kind: type[OwnTopics]) -> PublishEnvelope:
        def send(queue: str, envelope: str) -> None:
            producer = Producer({"bootstrap.servers": kafka.address})
            producer.produce(f"{kind.prefix}{queue}", envelope)
            assert producer.flush(10) == 0

        async def publish(queue: str, envelope: str) -> None:
            await asyncio.to_thread(send, queue, envelope)

        return publish

    async def test_no_queue_starves_another(self, broker: Broker) -> None:
        # Each topic is fetched on its own, so at first one may be there and another not.
        queues = ["long", "short", "other"]
        await broker.publish([publication(f"long-{n}", "long") for n in range(100)])
        await broker.publish([publication("short-0", "short"), publication("other-0", "other")])

        many = [delivery for _ in range(3) for delivery in await collect(broker, 20, queues)]

        assert {delivery.queue for delivery in many} == set(queues)

    async def test_no_queue_starves_another_one_by_one(self, broker: Broker) -> None:
        queues = ["first", "second", "third"]
        await broker.publish([publication(f"{queue}-{n}", queue) for queue in queues for n in range(10)])

        single = [(await collect(broker, 1, queues))[0].queue for _ in range(15)]

        assert set(single) == set(queues)

    async def test_an_empty_queue_gives_its_turn_to_all_others(self, broker: Broker) -> None:
        queues = ["empty", "first", "second"]
        await broker.publish([publication(f"{queue}-{n}", queue) for queue in queues[1:] for n in range(20)])
        # Whoever has been given one message of a topic has fetched all that was there.
        async with asyncio.timeout(_PATIENCE):
            for queue in queues[1:]:
                while not await receive(broker, 1, [queue]):
                    pass  # each call waits for Kafka

        counts = Counter([delivery.queue for _ in range(6) for delivery in await receive(broker, 2, queues)])

        assert counts == {"first": 6, "second": 6}


class TestZooKeeper(BrokerContract):
    @pytest.fixture
    def new_broker(self, zookeeper_url: str, database_url: str) -> NewBroker:
        return lambda lease: KombuBroker(
            partial(ZooKeeperSource, zookeeper_url, lease=lease), SQLBroker(database_url, lease=lease)
        )

    @pytest.fixture
    def publish_envelope(self, zookeeper: ZooKeeperServer, zookeeper_url: str) -> PublishEnvelope:
        def create(queue: str, envelope: str) -> None:
            client = KazooClient(zookeeper.address)
            client.start()
            folder = f"/{zookeeper_url.rpartition('/')[2]}/{queue}"
            client.create(f"{folder}/entry-009-", envelope.encode(), sequence=True, makepath=True)
            client.stop()
            client.close()

        async def publish(queue: str, envelope: str) -> None:
            await asyncio.to_thread(create, queue, envelope)

        return publish
