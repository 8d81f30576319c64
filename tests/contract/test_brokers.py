"""The broker contract on every broker."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import redis

from celeriac.brokers.memory import MemoryQueues
from celeriac.brokers.urls import broker_for
from celeriac.sql import engine as sql_engine
from celeriac.sql import messages
from celeriac.testing.contract.broker import BrokerContract
from celeriac.testing.contract.broker_fixtures import NewBroker, PublishEnvelope


class TestMemoryBroker(BrokerContract):
    @pytest.fixture
    def new_broker(self, request: pytest.FixtureRequest) -> NewBroker:
        return lambda lease: broker_for(f"memory://{request.node.name}", lease=lease)

    @pytest.fixture
    def publish_envelope(self, request: pytest.FixtureRequest) -> PublishEnvelope:
        async def publish(queue: str, envelope: str) -> None:
            MemoryQueues.named(request.node.name).insert([messages.Draft(queue, envelope)])

        return publish


class TestSQLiteBroker(BrokerContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/celery.db"

    @pytest.fixture
    def new_broker(self, url: str) -> NewBroker:
        return lambda lease: broker_for(url, lease=lease)

    @pytest.fixture
    def publish_envelope(self, url: str) -> PublishEnvelope:
        def insert(queue: str, envelope: str) -> None:
            engine = sql_engine.create_engine(url)
            drafts = [messages.Draft(queue, envelope)]
            sql_engine.write(engine, lambda connection: messages.insert(connection, drafts))
            engine.dispose()

        async def publish(queue: str, envelope: str) -> None:
            await asyncio.to_thread(insert, queue, envelope)

        return publish


class TestRedisBroker(BrokerContract):
    @pytest.fixture
    def url(self, redis_url: str) -> str:
        with redis.Redis.from_url(redis_url) as client:
            client.flushdb()
        return redis_url

    @pytest.fixture
    def new_broker(self, url: str) -> NewBroker:
        return lambda lease: broker_for(url, lease=lease)

    @pytest.fixture
    def publish_envelope(self, url: str) -> PublishEnvelope:
        def push(queue: str, envelope: str) -> None:
            with redis.Redis.from_url(url) as client:
                client.lpush(queue, envelope)

        async def publish(queue: str, envelope: str) -> None:
            await asyncio.to_thread(push, queue, envelope)

        return publish
