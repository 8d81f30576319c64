"""Raise an exception of choice in a coroutine, at the ``await`` where it is."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Coroutine, Generator
from typing import Any

__all__ = ["Steered"]


class Steered:
    """Awaits a coroutine, and can raise an exception of choice at the ``await`` where it is.

    A task group that waits for its children understands nothing but a cancellation, so it gets that; the exception of
    choice is then raised in place of the cancellation that comes out.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], runner: asyncio.Task[Any]) -> None:
        self._coroutine = coroutine
        self._runner = runner
        self._pending: BaseException | None = None
        self._owed: BaseException | None = None

    def throw_in(self, exception: BaseException) -> None:
        """Raise in the coroutine: the loop can only cancel, and ``__await__`` makes the exception of it."""
        self._pending = exception
        self._runner.cancel()

    def __await__(self) -> Generator[Any, Any, Any]:
        error: BaseException | None = None
        while True:
            try:
                waiting_for = self._step(error)
            except StopIteration as stop:
                return stop.value
            error = None
            try:
                yield waiting_for
            except asyncio.CancelledError as cancelled:
                error = self._translate(cancelled)
            except BaseException as exc:  # noqa: BLE001 - what the loop throws in is the coroutine's
                error = exc

    def _step(self, error: BaseException | None) -> Any:
        try:
            return self._coroutine.send(None) if error is None else self._coroutine.throw(error)
        except asyncio.CancelledError:
            if self._owed is None:
                raise
            raise self._owed from None

    def _translate(self, cancelled: asyncio.CancelledError) -> BaseException:
        if self._pending is None:
            return cancelled
        exception, self._pending = self._pending, None
        if _waits_in_task_group(self._coroutine):
            self._owed = exception
            return cancelled
        self._runner.uncancel()
        return exception


def _waits_in_task_group(coroutine: Coroutine[Any, Any, Any]) -> bool:
    innermost: Any = coroutine
    while inspect.iscoroutine(inner := innermost.cr_await):
        innermost = inner
    code = innermost.cr_code
    return code.co_name in ("__aexit__", "_aexit") and "taskgroups" in code.co_filename
