"""Waiting for a store's watch, with everything else that can end the wait."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from enum import Enum
from types import TracebackType
from typing import Any, Self

from celeriac.stores.base import Watch

__all__ = ["Alarm", "Ring"]


class Ring(Enum):
    """Why a wait ended."""

    CHANGED = "the watch's flag went up"
    OVER = "one of the others ended: there is nothing to wait for any more"
    TIMEOUT = "nothing happened"


class Alarm:
    """An async context that rings when the watch does, or once any of ``others`` has ended.

    The waits live as long as the context, so that a timeout never cancels one that was about to end: a lowered flag
    would be lost with it.
    """

    def __init__(self, watch: Watch, *others: Coroutine[Any, Any, Any] | None) -> None:
        self._watch = watch
        self._pending = [other for other in others if other is not None]
        self._changed: asyncio.Task[None] | None = None
        self._others: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        self._others = {asyncio.ensure_future(other) for other in self._pending}
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        tasks = self._others | ({self._changed} if self._changed else set())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def wait(self, timeout: float) -> Ring:
        """Wait at most ``timeout`` seconds. Raises what the watch raises."""
        if self._changed is None:
            self._changed = asyncio.ensure_future(self._watch.changed())
        done, _ = await asyncio.wait(
            {self._changed, *self._others}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
        )
        if self._changed in done:
            changed, self._changed = self._changed, None
            changed.result()
            return Ring.CHANGED
        return Ring.OVER if done else Ring.TIMEOUT
