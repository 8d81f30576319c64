"""Whether a client takes what it is sent, and what becomes of one that does not.

A client that stops reading fills the buffers on its way, and then the server's. What it has not taken stays there for
as long as the connection does, which the server by itself would keep for ever: closing waits until all is sent. So what
waits in the server's buffer is watched, and where nothing of it has gone for a while the connection is cut.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from typing import Any, Self

from celeriac.fastapi import shutdown

__all__ = ["Client", "transport_of"]

_log = logging.getLogger(__name__)

#: Seconds that a client may be behind before what was read for it is forgotten.
_BEHIND = 0.5

#: Looks at the buffer, within the time that a client has.
_LOOKS = 8

#: Seconds that a client has once the server has been told to stop.
_HURRY = 1.0

#: Callables that are looked through for the transport, at most.
_WRAPPERS = 100


class Client:
    """The receiving end of one stream: an async context, which ends when all is taken, or the client is dropped.

    Args:
        receive: the ASGI ``receive`` of the connection, behind which its transport is.
        gone: ends when the client has gone.
        stop: called when the client has gone.
        patience: seconds without taking anything after which the client is dropped.
        name: whose events they are, for the log.
        behind: called when the client falls behind.
    """

    __slots__ = (
        "_behind",
        "_done",
        "_hurrying",
        "_listening",
        "_name",
        "_patience",
        "_sending",
        "_since",
        "_taken",
        "_timer",
        "_transport",
        "_written",
        "dropped",
    )

    def __init__(
        self,
        receive: Callable[..., Any],
        gone: Coroutine[Any, Any, None],
        *,
        stop: Callable[[object], None],
        behind: Callable[[], None],
        patience: float,
        name: str,
    ) -> None:
        self.dropped = False
        self._transport = transport_of(receive)
        self._patience = patience
        self._name = name
        self._behind = behind
        self._sending = False
        self._written = 0  # bytes; the wire's own are not counted
        self._taken = 0
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._done: asyncio.Future[None] | None = None
        self._listening = asyncio.create_task(gone)
        self._listening.add_done_callback(stop)
        self._hurrying = shutdown.on_stop(self._hurry)

    async def __aenter__(self) -> Self:
        self._hurrying.__enter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            # A server that closes a connection waits until all is sent, and so must not be left alone with it.
            await self._finish()
        finally:
            self._hurrying.__exit__(None, None, None)
            if self._timer is not None:
                self._timer.cancel()
            self._listening.cancel()
            await asyncio.wait([self._listening])

    @property
    def gone(self) -> bool:
        """Whether the client has gone, or the server has closed the connection."""
        return self._listening.done()

    async def send(self, sending: Awaitable[None], size: int) -> None:
        """Send ``size`` bytes; look at ``dropped`` afterwards."""
        if self._transport is None:
            await self._send_blindly(sending)
            return
        self._look_after()
        self._sending = True
        try:
            await sending
        finally:
            self._sending = False
        self._written += size
        self._look_after()

    async def _finish(self) -> None:
        if self._transport is not None:
            self._look_after()
        if self._timer is not None:
            self._done = asyncio.get_running_loop().create_future()
            await self._done

    def _hurry(self) -> None:
        """Have less patience: the server has been told to stop."""
        self._patience = min(self._patience, _HURRY)
        if self._timer is not None:
            self._timer.cancel()
            self._look()

    async def _send_blindly(self, sending: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self._patience):
                await sending
        except TimeoutError:
            self._drop()

    def _look_after(self) -> None:
        if self._timer is None and self._transport.get_write_buffer_size():
            self._since = asyncio.get_running_loop().time()
            self._taken = self._written - self._transport.get_write_buffer_size()
            self._look_again()

    def _look_again(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(min(_BEHIND, self._patience / _LOOKS), self._look)

    def _look(self) -> None:
        self._timer = None
        left, now = self._transport.get_write_buffer_size(), asyncio.get_running_loop().time()
        if not left or self.dropped:
            if self._done is not None and not self._done.done():
                self._done.set_result(None)
            return
        if self._sending:
            self._behind()
        if self._written - left > self._taken:
            self._taken, self._since = self._written - left, now
        elif now - self._since >= self._patience:
            self._drop()
        self._look_again()

    def _drop(self) -> None:
        self.dropped = True
        _log.info(
            "dropped a client of the events of task %s: it took nothing for %g s", self._name, self._patience
        )
        if self._transport is not None:
            self._transport.abort()


def transport_of(receive: Callable[..., Any]) -> Any:
    """The asyncio transport behind an ASGI ``receive``, through what middlewares have wrapped it in.

    ASGI has no word for it: uvicorn's ``receive`` is a method of an object that has it. ``None`` with a server that
    keeps it elsewhere.
    """
    found: deque[Any] = deque([receive])
    seen: set[int] = set()
    while found and len(seen) < _WRAPPERS:
        wrapper = found.popleft()
        if id(wrapper) in seen:
            continue
        seen.add(id(wrapper))
        transport = getattr(getattr(wrapper, "__self__", None), "transport", None)
        if hasattr(transport, "get_write_buffer_size") and hasattr(transport, "abort"):
            return transport
        found.extend(inner for inner in _wrapped(wrapper) if callable(inner))
    return None


def _wrapped(wrapper: Any) -> Iterator[Any]:
    owner = getattr(wrapper, "__self__", None)
    yield getattr(owner, "_receive", None)
    if isinstance(wrapper, partial):
        yield from (wrapper.func, *wrapper.args, *wrapper.keywords.values())
    for cell in getattr(wrapper, "__closure__", None) or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not bound yet
            continue
