"""Messages to send through a broker under test, and ways to get them back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from celeriac.brokers.base import Broker, Delayed, Delivery, Publication, Settlement
from celeriac.errors import MalformedMessage
from celeriac.protocol.envelope import decode
from celeriac.protocol.message import Message
from celeriac.protocol.settlement import Action

__all__ = ["acknowledged", "collect", "message", "name_of", "publication", "receive"]

#: Seconds after which something that should have happened has not.
_PATIENCE = 20.0


def message(name: str, body: bytes = b"[[], {}, {}]") -> Message:
    """A task message whose id is ``name``."""
    return Message(
        headers={"lang": "py", "task": "contract.task", "id": name, "root_id": name, "retries": 0},
        properties={"correlation_id": name, "delivery_mode": 2, "delivery_tag": "0", "priority": 0},
        body=body,
    )


def publication(name: str, queue: str = "contract", **options: Any) -> Publication:
    """A publication of the message ``name``; ``options`` are Publication's."""
    return Publication(message(name), queue, task_id=name, **options)


def name_of(delivery: Delivery | Delayed) -> str:
    """The name of the message that was delivered, or is to be."""
    envelope = delivery.envelope
    name: str = (envelope if isinstance(envelope, Message) else decode(envelope)).headers["id"]
    return name


def acknowledged(deliveries: Iterable[Delivery]) -> list[Settlement]:
    """Settlements that acknowledge the deliveries."""
    return [Settlement(delivery.tag, Action.ACKNOWLEDGE) for delivery in deliveries]


async def receive(broker: Broker, limit: int = 100, queues: Sequence[str] = ("contract",)) -> list[Delivery]:
    """What is there now; by name, where the broker promises no order."""
    deliveries = list((await broker.receive(queues, limit)).deliveries)
    return deliveries if broker.capabilities.ordered else sorted(deliveries, key=_name_or_nothing)


def _name_or_nothing(delivery: Delivery) -> str:
    try:
        return name_of(delivery)
    except MalformedMessage:
        return ""


async def collect(broker: Broker, count: int, queues: Sequence[str] = ("contract",)) -> list[Delivery]:
    """Receive until ``count`` deliveries have come, waiting as a worker does."""
    deliveries: list[Delivery] = []
    async with asyncio.timeout(_PATIENCE):
        while len(deliveries) < count:
            batch = await receive(broker, count - len(deliveries), queues)
            deliveries += batch
            if not batch:
                await broker.wait(queues)
    return deliveries
