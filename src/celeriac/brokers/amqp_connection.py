"""The driver's connection, that outlives messages which nobody can read, and notices silence in time."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import pamqp.frame
from aiormq.connection import Connection, FrameReceiver, ReceivedFrame
from aiormq.exceptions import AMQPConnectionError, InvalidFrameError
from pamqp import commands as spec
from pamqp.constants import FRAME_HEADER, FRAME_HEADER_SIZE
from pamqp.exceptions import PAMQPException
from pamqp.header import ContentHeader

__all__ = ["UNREADABLE", "TolerantConnection"]

#: A header of ours: the properties of a message, as they came, that the driver cannot read.
UNREADABLE = "x-celeriac-unreadable"


class _Receiver(FrameReceiver):
    """Reads frames. One message whose properties cannot be read is no reason to end the connection.

    It would be delivered again, and end the next connection, with all that is held by it.
    """

    async def get_frame(self) -> ReceivedFrame:
        if self.reader.at_eof():
            raise StopAsyncIteration
        try:
            start = await self.reader.readexactly(FRAME_HEADER_SIZE)
            kind, channel, size = struct.unpack(">BHI", start)
            rest = await self.reader.readexactly(size + 1)
        except asyncio.IncompleteReadError as exc:
            raise AMQPConnectionError("the server has closed the connection") from exc
        except OSError as exc:
            raise AMQPConnectionError(f"the connection broke: {exc!r}") from exc
        try:
            return pamqp.frame.unmarshal(start + rest)
        except (PAMQPException, ValueError, OverflowError, RecursionError) as exc:
            if kind != FRAME_HEADER:
                raise InvalidFrameError(str(exc)) from exc
            return size, channel, _unreadable(rest[:-1])


def _unreadable(payload: bytes) -> ContentHeader:
    """The header of a message that says of it what can be said."""
    _class, weight, body_size = struct.unpack(">HHQ", payload[:12])
    properties = spec.Basic.Properties(headers={UNREADABLE: bytearray(payload[12:])}, delivery_mode=2)
    return ContentHeader(weight, body_size, properties)


class TolerantConnection(Connection):
    """One connection. It is given up after two heartbeats without a frame, when the server gives it up, too."""

    #: Of a heartbeat and a second, to which up to half a heartbeat comes until somebody looks.
    HEARTBEAT_GRACE_MULTIPLIER = 1.25  # type: ignore[assignment]

    @staticmethod
    async def _rpc(
        request: Any, writer: asyncio.StreamWriter, frame_receiver: FrameReceiver, wait_response: bool = True
    ) -> Any:
        # The driver makes its receiver itself, and offers no other place to have it be another.
        frame_receiver.__class__ = _Receiver
        return await Connection._rpc(request, writer, frame_receiver, wait_response)
