"""Messages on RabbitMQ that nobody can read end among the dead letters, and cost nobody else anything."""

from __future__ import annotations

import asyncio
import struct

import aiormq
import pytest
from aiormq.abc import ChannelFrame
from pamqp import commands as spec
from pamqp import frame
from pamqp.body import ContentBody

from celeriac.brokers.amqp import AMQPBroker
from celeriac.brokers.base import Settlement
from celeriac.protocol.message import Message
from celeriac.protocol.settlement import Action
from celeriac.testing.contract.messages import acknowledged, collect, publication


def _table(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + value


def _deep(levels: int) -> bytes:
    value = b"V"
    for _ in range(levels):
        inner = _table(b"a", value)
        value = b"F" + struct.pack(">I", len(inner)) + inner
    return _table(b"a", value)


#: Headers that RabbitMQ passes on, and that the driver cannot read, or cannot write again.
HEADERS = {
    "a time after all years": _table(b"when", b"T" + struct.pack(">Q", 2**64 - 1)),
    "a name that is no UTF-8": _table(b"\xff\xfe", b"V"),
    "too deep to be read": _deep(3000),
    "too deep to be written": _deep(240),
}


async def send_raw(url: str, queue: str, headers: bytes) -> None:
    """Publish a message with these headers as they are."""
    connection = await aiormq.connect(url)
    channel = await connection.channel(publisher_confirms=False)
    body = b"[[], {}, {}]"
    properties = struct.pack(">HHQH", 60, 0, len(body), 0x2000) + struct.pack(">I", len(headers)) + headers
    payload = (
        frame.marshal(spec.Basic.Publish(exchange="", routing_key=queue), channel.number)
        + struct.pack(">BHI", 2, channel.number, len(properties))
        + properties
        + b"\xce"
        + frame.marshal(ContentBody(body), channel.number)
    )
    await channel.write_queue.put(ChannelFrame(payload=payload, should_close=False))  # type: ignore[attr-defined]
    await channel.queue_declare(queue, passive=True)
    await connection.close()


@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS.keys())
async def test_what_cannot_be_read_is_kept_and_hurts_nobody(rabbitmq_url: str, headers: bytes) -> None:
    broker = AMQPBroker(rabbitmq_url)
    await broker.open()
    lost: list[str] = []
    broker.on_lost(lost.extend)
    await broker.publish([publication("1")])
    [first] = await collect(broker, 1)
    await send_raw(rabbitmq_url, "contract", headers)
    await broker.publish([publication("2")])
    strange, last = await collect(broker, 2)
    assert isinstance(strange.envelope, Message)
    assert "task" not in strange.envelope.headers
    assert strange.envelope.body == b"[[], {}, {}]"
    assert not await broker.settle([Settlement(strange.tag, Action.REQUEUE)])
    async with asyncio.timeout(10):
        [strange] = await collect(broker, 1)
    bury = Settlement(strange.tag, Action.DEAD_LETTER, reason="unreadable")
    assert not await broker.settle([bury, *acknowledged([first, last])])
    assert [letter.reason for letter in await broker.dead_letters()] == ["unreadable"]
    assert not lost
    await broker.close()
