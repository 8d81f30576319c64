"""A stream of events as Server-Sent Events.

FastAPI formats them, and the response is ours: FastAPI's own for generators runs two tasks and two queues for each
client besides the generator, which is most of what an idle stream costs, and cannot tell that a client does not read.
"""

from __future__ import annotations

import contextlib
from typing import Any

from fastapi.sse import format_sse_event
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from celeriac.fastapi.clients import Client
from celeriac.fastapi.stream import HEARTBEAT, EventStream, Told

__all__ = ["EVENT_SCHEMA", "EventsResponse"]

_STAY_AWAY = 3_600_000  # milliseconds: a browser that does not close on ``end`` shall not be back every 3 s
_COMMENT = format_sse_event(comment="heartbeat")

#: One event, as OpenAPI 3.2 has it in its section on ``text/event-stream``.
EVENT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "data": {"type": "string", "contentMediaType": "application/json"},
        "event": {"type": "string"},
        "id": {"type": "string"},
        "retry": {"type": "integer", "minimum": 0},
    },
}


class EventsResponse(StreamingResponse):
    """The events of ``stream`` until it ends; a client that takes nothing for ``slow_client`` seconds is dropped."""

    media_type = "text/event-stream"

    def __init__(self, stream: EventStream, slow_client: float) -> None:
        content: Any = stream  # which it never iterates over: __call__ does
        # Nginx would keep events back until its buffer is full.
        super().__init__(content, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._stream = stream
        self._patience = slow_client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stream = self._stream
        client = Client(
            receive,
            _gone(receive),
            stop=stream.stop,
            behind=stream.forget,
            patience=self._patience,
            name=stream.task_id,
        )
        async with client:
            with contextlib.suppress(OSError):  # some servers say in this way that the client has gone
                await self._tell(client, send)

    async def _tell(self, client: Client, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await client.send(send(start), 0)
        async for told in self._stream:
            body = b"".join(map(_format, told))
            message = {"type": "http.response.body", "body": body, "more_body": True}
            await client.send(send(message), len(body))
            if client.dropped:
                return
        await client.send(send({"type": "http.response.body", "body": b"", "more_body": False}), 0)


def _format(told: Told) -> bytes:
    if told is HEARTBEAT:
        return _COMMENT
    retry = _STAY_AWAY if told.event == "end" else None
    return format_sse_event(data_str=told.data, event=told.event, id=told.id, retry=retry)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
