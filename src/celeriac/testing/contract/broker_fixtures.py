"""The fixtures that all broker cases share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from celeriac.brokers.base import Broker

__all__ = ["BrokerCases", "Connect", "NewBroker", "PublishEnvelope", "need"]

NewBroker = Callable[[float], Broker]
Connect = Callable[..., Awaitable[Broker]]
PublishEnvelope = Callable[[str, str], Awaitable[None]]


class BrokerCases:
    """Cases about brokers, and what they stand on."""

    pytestmark = pytest.mark.asyncio

    @pytest.fixture
    def new_broker(self) -> NewBroker:
        """Makes a broker that is not open yet, from a lease in seconds. To be given by the implementation's tests."""
        raise NotImplementedError("Give the contract a new_broker fixture.")

    @pytest.fixture
    def publish_envelope(self) -> PublishEnvelope | None:
        """Puts an envelope (queue, text) into a queue as it is. To be given where it can be."""
        return None

    @pytest_asyncio.fixture
    async def connect(self, new_broker: NewBroker) -> AsyncIterator[Connect]:
        """Opens another client of the server, with the given lease, until the test ends."""
        opened: list[Broker] = []

        async def connect(lease: float = 30.0) -> Broker:
            broker = new_broker(lease)
            await broker.open()
            opened.append(broker)
            return broker

        yield connect
        for broker in reversed(opened):
            await broker.close()

    @pytest_asyncio.fixture
    async def broker(self, connect: Connect) -> Broker:
        """A client of the server."""
        return await connect()

    @pytest_asyncio.fixture
    async def other_broker(self, connect: Connect, broker: Broker) -> Broker:
        """A second client of the same server."""
        return await connect()


def need(broker: Broker, capability: str) -> None:
    """Skip the test if the broker cannot do this by itself."""
    if not getattr(broker.capabilities, capability):
        pytest.skip(f"This broker has no {capability.replace('_', ' ')}.")
