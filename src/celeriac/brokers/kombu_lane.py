"""One thread and the connection of kombu's that it owns: it connects, serves calls in their order, and reconnects."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from celeriac.brokers.base import PartlyPublished
from celeriac.brokers.kombu_sources.base import Source
from celeriac.errors import BrokerUnavailable, CeleriacError, again

__all__ = ["Call", "Lane"]

logger = logging.getLogger("celeriac.brokers.kombu")

S = TypeVar("S", bound=Source)

#: Seconds between attempts to connect: from, to. Who asks in between is told the last error.
_BACKOFF = (0.1, 1.0)

#: Seconds that connecting may take before the thread counts as stuck; drivers bound it themselves, mostly.
_CONNECTING = 30.0

#: Seconds that undoing what nobody waits for may take.
_UNDOING = 10.0

#: What is the caller's own, and says nothing about the connection.
_CALLERS = (CeleriacError, TypeError)


@dataclass(slots=True)
class Call:
    """What the source is to do, and who waits for it; the arguments are those of ``SourceThread.run``."""

    run: Callable[[Any], Any]
    deadline: float
    again: bool
    unwanted: Callable[[Any, Any], None] | None
    future: asyncio.Future[Any]
    began: float = 0.0  # when the source was asked, on time.monotonic's clock


class Lane(Generic[S]):
    """One thread and its source. It begins at once, and takes calls from the thread of ``loop``."""

    def __init__(self, source: S, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self.source = source
        self.loop = loop
        self._inbox: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._open = False
        self._opening = 0.0
        self._current: Call | None = None
        self._pause = _BACKOFF[0]
        self._not_before = 0.0
        self._trouble: BrokerUnavailable | None = None
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread has not ended."""
        return self._thread.is_alive()

    def submit(self, call: Call) -> None:
        """Have this called after what was submitted before."""
        self._inbox.put(call)
        self.source.wake()

    def nudge(self) -> None:
        """Have the thread not wait, even if it had been about to: it sees that somebody else has called."""
        done: asyncio.Future[None] = self.loop.create_future()
        done.set_result(None)
        self.submit(Call(lambda _: None, 0.0, False, None, done))

    def is_stuck_in(self, call: Call | None) -> bool:
        """Whether the thread is in this very call, or in one that is overdue; connecting takes its time."""
        current, opening, now = self._current, self._opening, time.monotonic()
        if current is None:
            return False
        if opening:
            return now - opening > _CONNECTING
        return current is call or (bool(current.began) and now > current.began + current.deadline)

    def abandon(self) -> list[Call]:
        """Leave the thread alone: it ends when its call returns. Returns the calls that had not begun."""
        waiting = []
        with contextlib.suppress(queue.Empty):
            while True:
                call = self._inbox.get_nowait()
                if call is not None:
                    waiting.append(call)
        self._inbox.put(None)
        self.source.wake()
        return waiting

    def stop(self) -> asyncio.Event:
        """End after what was asked for. The event is set when the thread has ended."""
        self._inbox.put(None)
        self.source.wake()
        return self._ended

    def _main(self) -> None:
        while (call := self._inbox.get()) is not None:
            if not call.future.done():
                self._serve(call)
        self._close()
        self._tell(self._ended.set)

    def _serve(self, call: Call) -> None:
        # In this order nobody waits for a call that waits: who submits puts first, and wakes then.
        self.source.doze()
        if not self._inbox.empty():
            self.source.wake()
        self._current = call
        try:
            result = self._run(call)
        except BaseException as exc:  # noqa: BLE001 - it belongs to whoever asked
            self._answer(call, None, exc)
        else:
            self._answer(call, result, None)
        finally:
            self._current = None

    def _run(self, call: Call) -> Any:
        fresh = self._connect()
        call.began = time.monotonic()
        try:
            return call.run(self.source)
        except PartlyPublished as exc:
            if not exc.permanent:
                self._close()
            raise
        except _CALLERS:
            raise
        except Exception as exc:
            self._close()
            if not call.again or fresh or call.future.done():
                raise self._explained(exc) from exc
        self._connect()
        try:
            return call.run(self.source)
        except _CALLERS:
            raise
        except Exception as exc:
            self._close()
            raise self._explained(exc) from exc

    def _connect(self) -> bool:
        """Open the source if it is not open. Returns whether it was opened now."""
        if self._open:
            return False
        if self._trouble is not None and time.monotonic() < self._not_before:
            raise again(self._trouble)
        self._opening = time.monotonic()
        try:
            self.source.open()
        except BaseException as exc:
            self._close()
            if isinstance(exc, CeleriacError) and not isinstance(exc, BrokerUnavailable):
                raise
            if not isinstance(exc, Exception):
                raise
            self._trouble = self._explained(exc)
            self._not_before = time.monotonic() + self._pause
            self._pause = min(self._pause * 2, _BACKOFF[1])
            raise self._trouble from exc
        finally:
            self._opening = 0.0
        self._open, self._trouble, self._pause = True, None, _BACKOFF[0]
        return True

    def _close(self) -> None:
        self._open = False
        try:
            self.source.close()
        except Exception as exc:  # noqa: BLE001 - what is gone cannot be closed any better
            logger.debug("Closing the connection to %s failed: %r", self.source.place, exc)

    def _explained(self, exc: BaseException) -> BrokerUnavailable:
        try:
            return self.source.explained(exc)
        except Exception:
            logger.exception("An error of the broker at %s cannot be explained", self.source.place)
            return BrokerUnavailable(f"The broker at {self.source.place} failed with a {type(exc).__name__}.")

    def _answer(self, call: Call, result: Any, error: BaseException | None) -> None:
        unwanted = call.unwanted if error is None else None
        if unwanted is not None and call.future.done():
            self._undo(unwanted, result)
            return

        def tell() -> None:
            if not call.future.done():
                if error is None:
                    call.future.set_result(result)
                else:
                    call.future.set_exception(error)
            elif unwanted is not None:
                self._regret(unwanted, result)

        self._tell(tell)

    def _undo(self, unwanted: Callable[[Any, Any], None], result: Any) -> None:
        try:
            unwanted(self.source, result)
        except Exception as exc:  # noqa: BLE001 - it then comes back when its lease ends
            logger.warning("What was not wanted any more was not undone: %s", self._explained(exc))

    def _regret(self, unwanted: Callable[[Any, Any], None], result: Any) -> None:
        """Somebody stopped waiting just as the result came: the thread undoes it."""
        future: asyncio.Future[Any] = self.loop.create_future()
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.submit(Call(lambda source: unwanted(source, result), _UNDOING, False, None, future))

    def _tell(self, callback: Callable[[], Any]) -> None:
        with contextlib.suppress(RuntimeError):  # a loop that has closed has nobody who waits
            self.loop.call_soon_threadsafe(callback)
