"""Calls what users have given the worker to call: receivers of Celery's signals, and handlers of tasks.

All signals that the worker sends go through here. A receiver that is a coroutine function is awaited. What a receiver
raises is logged and changes nothing, as Celery says
(https://docs.celeryq.dev/en/stable/userguide/signals.html); one that keeps the event loop waiting is named in the log.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from celery.utils.log import get_logger

from celeriac.eager import run_to_end
from celeriac.worker.compat import live_receivers, receiver_function

__all__ = ["UserCall", "announce", "announce_here", "perform", "perform_until_awaitable", "receivers_of"]

logger = get_logger(__name__)

#: Seconds that a receiver or a handler may keep the event loop, before it is named.
STALL = 0.05

#: Seconds between two warnings about the same one.
QUIET = 60.0

_warned: dict[tuple[str, str], float] = {}
_announcing: set[asyncio.Task[None]] = set()


@dataclass(slots=True)
class UserCall:
    """A call of a receiver or a handler.

    ``what`` says of what, for the log; ``on_error`` takes what it raises, which is raised if there is none.
    """

    function: Callable[..., Any]
    what: str
    args: Sequence[Any] = ()
    named: Mapping[str, Any] = field(default_factory=dict)
    on_error: Callable[[BaseException], None] | None = None

    def begin(self) -> Any:
        """Make the call; what is returned may have to be awaited, by ``finish``."""
        try:
            return self.function(*self.args, **self.named)
        except BaseException as exc:
            # ``SystemExit``, too, which would end the worker; in Celery's pools a child, which is replaced.
            if self.on_error is None:
                raise
            self.on_error(exc)
            return None

    async def finish(self, awaitable: Awaitable[Any]) -> None:
        """Await what the call has returned."""
        try:
            await awaitable
        except GeneratorExit:
            raise
        except BaseException as exc:
            if self.on_error is None:
                raise
            self.on_error(exc)


def receivers_of(signal: Any, sender: Any, **named: Any) -> list[UserCall]:
    """The calls that sending the signal consists of."""
    if not signal.receivers:
        return []
    arguments = {"signal": signal, "sender": sender, **named}
    return [
        UserCall(receiver, f"receiver of {signal.name}", (), arguments, _logs(receiver))
        for receiver in live_receivers(signal, sender)
    ]


def _logs(receiver: Callable[..., Any]) -> Callable[[BaseException], None]:
    def log(error: BaseException) -> None:
        logger.error("Signal handler %r raised: %r", receiver, error, exc_info=error)

    return log


async def announce(signal: Any, sender: Any, **named: Any) -> None:
    """Send a signal of Celery's on the event loop."""
    if signal.receivers:
        await perform(receivers_of(signal, sender, **named))


def announce_here(signal: Any, sender: Any, **named: Any) -> None:
    """Send a signal where nothing can be awaited.

    Receivers that are coroutine functions run soon on the loop of this thread; where there is none, to their end.
    """
    for call in receivers_of(signal, sender, **named):
        awaitable = _begin(call)
        if awaitable is None:
            continue
        if _loop_runs():
            task = asyncio.ensure_future(call.finish(awaitable))
            _announcing.add(task)
            task.add_done_callback(_announcing.discard)
        else:
            run_to_end(call.finish(awaitable))


async def perform(calls: Iterable[UserCall]) -> None:
    """Make the calls one after the other on the event loop."""
    for call in calls:
        awaitable = _begin(call)
        if awaitable is not None:
            await call.finish(awaitable)


def perform_until_awaitable(calls: Iterator[UserCall]) -> tuple[UserCall, Awaitable[Any]] | None:
    """Make the calls in a thread, up to one that has to be awaited elsewhere."""
    for call in calls:
        result = call.begin()
        if inspect.isawaitable(result):
            return call, result
    return None


def _begin(call: UserCall) -> Awaitable[Any] | None:
    started = time.perf_counter()
    result = call.begin()
    took = time.perf_counter() - started
    if took > STALL and _loop_runs():
        _warn(call, took)
    return result if inspect.isawaitable(result) else None


def _warn(call: UserCall, took: float) -> None:
    function = receiver_function(call.function)
    name = f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    now = time.monotonic()
    if now - _warned.get((name, call.what), float("-inf")) < QUIET:
        return
    _warned[name, call.what] = now
    logger.warning(
        "%s, %s, kept the event loop waiting for %.0f ms, and with it all other tasks: "
        "make it an `async def` that awaits, or shorter.",
        name,
        call.what,
        took * 1000,
    )


def _loop_runs() -> bool:
    return asyncio._get_running_loop() is not None
