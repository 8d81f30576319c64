"""The broker contract on the bridge to kombu's transports."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from kombu.transport import memory

from celeriac.brokers.kombu import KombuBroker
from celeriac.brokers.kombu_sources.base import Outgoing
from celeriac.brokers.kombu_sources.filesystem import FilesystemSource
from celeriac.brokers.kombu_sources.generic import GenericSource
from celeriac.brokers.kombu_sources.sqla import SQLAlchemySource
from celeriac.brokers.sql import SQLBroker
from celeriac.protocol.message import Message
from celeriac.testing.contract.broker import BrokerContract
from celeriac.testing.contract.broker_fixtures import NewBroker, PublishEnvelope


class TestSQLAlchemy(BrokerContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqla+sqlite:///{tmp_path}/broker.db"

    @pytest.fixture
    def new_broker(self, url: str, database_url: str) -> NewBroker:
        options = {"polling_interval": 0.05}
        return lambda lease: KombuBroker(
            lambda: SQLAlchemySource(url, options=options, lease=lease), SQLBroker(database_url, lease=lease)
        )

    @pytest.fixture
    def publish_envelope(self, url: str) -> PublishEnvelope:
        def insert(queue: str, envelope: str) -> None:
            source = SQLAlchemySource(url)
            source.open()
            source.put([Outgoing(queue, Message({}, {}, b""))])
            source.close()
            engine = sa.create_engine(url.removeprefix("sqla+"))
            with engine.begin() as connection:
                latest = "(SELECT max(id) FROM kombu_message)"
                connection.execute(
                    sa.text(f"UPDATE kombu_message SET payload = :text WHERE id = {latest}"),
                    {"text": envelope},
                )
            engine.dispose()

        async def publish(queue: str, envelope: str) -> None:
            await asyncio.to_thread(insert, queue, envelope)

        return publish


class TestFilesystem(BrokerContract):
    @pytest.fixture
    def new_broker(self, tmp_path: Path, database_url: str) -> NewBroker:
        folder = str(tmp_path / "data")
        options = {"data_folder_in": folder, "data_folder_out": folder, "polling_interval": 0.05}
        return lambda lease: KombuBroker(
            lambda: FilesystemSource("filesystem://", options=options, lease=lease),
            SQLBroker(database_url, lease=lease),
        )

    @pytest.fixture
    def publish_envelope(self, tmp_path: Path) -> PublishEnvelope:
        def write(queue: str, envelope: str) -> None:
            # Long ago, or somebody might still be writing it.
            path = tmp_path / "data" / f"{round(time.monotonic() * 1000)}_{os.urandom(4).hex()}.{queue}.msg"
            path.write_text(envelope)
            os.utime(path, (0, 0))
            time.sleep(0.002)  # the next one comes after it

        async def publish(queue: str, envelope: str) -> None:
            await asyncio.to_thread(write, queue, envelope)

        return publish


class TestGenericOnMemory(BrokerContract):
    @pytest.fixture
    def new_broker(self, request: pytest.FixtureRequest, database_url: str) -> Iterator[NewBroker]:
        options = {"polling_interval": 0.05}
        yield lambda lease: KombuBroker(
            lambda: GenericSource("memory://", options=options, lease=lease),
            SQLBroker(database_url, lease=lease),
        )
        memory.Channel.queues.clear()
