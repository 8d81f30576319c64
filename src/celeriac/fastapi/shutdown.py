"""Knowing that the server has been told to stop.

ASGI tells an app only after the last response has ended, and a stream of events would keep a server from ever getting
there: uvicorn waits for its connections, the browser for its task. So the lifespan listens in on the signals that
servers stop on, and streams and waiting requests end when one comes.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

__all__ = ["listen", "on_stop", "stopping"]

_stopping: WeakKeyDictionary[asyncio.AbstractEventLoop, _Stopping] = WeakKeyDictionary()


class _Stopping(asyncio.Event):
    """Set once the server has been told to stop; it calls back, too, which costs those who wait no task."""

    def __init__(self) -> None:
        super().__init__()
        self.callbacks: dict[object, Callable[[], None]] = {}

    def set(self) -> None:
        super().set()
        for callback in tuple(self.callbacks.values()):
            callback()


def stopping() -> asyncio.Event | None:
    """The event that is set once this loop's server has been told to stop; ``None`` when nobody listens."""
    return _stopping.get(asyncio.get_running_loop())


@contextmanager
def on_stop(callback: Callable[[], None]) -> Iterator[None]:
    """Have ``callback`` called on this loop once its server has been told to stop, or at once if it has been."""
    event = _stopping.get(asyncio.get_running_loop())
    if event is None:
        yield
        return
    key = object()
    event.callbacks[key] = callback
    if event.is_set():
        callback()
    try:
        yield
    finally:
        del event.callbacks[key]


@contextmanager
def listen() -> Iterator[None]:
    """Hear of SIGINT and SIGTERM, before the handlers that are there, for as long as the context lasts."""
    loop = asyncio.get_running_loop()
    if loop in _stopping or threading.current_thread() is not threading.main_thread():
        yield
        return
    event = _stopping[loop] = _Stopping()

    def stop() -> None:
        with suppress(RuntimeError):  # a handler that could not be taken out again may outlive its loop
            loop.call_soon_threadsafe(event.set)

    restores = [_chain(number, stop) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield
    finally:
        for restore in restores:
            restore()
        _stopping.pop(loop, None)


def _chain(number: signal.Signals, stop: Callable[[], None]) -> Callable[[], None]:
    previous = signal.getsignal(number)
    if not callable(previous):
        # The default action ends the process by itself; a handler here would keep it from that.
        return lambda: None

    def handler(received: int, frame: FrameType | None) -> Any:
        stop()
        return previous(received, frame)

    signal.signal(number, handler)

    def restore() -> None:
        if signal.getsignal(number) is handler:
            signal.signal(number, previous)

    return restore
