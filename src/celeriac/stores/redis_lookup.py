"""Records that several callers want in one tick of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from celeriac.stores.redis_rows import Kept

__all__ = ["Lookup"]


class Lookup:
    """Records that several callers want, and the answer for all of them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.task_ids: dict[str, None] = {}
        self.future: asyncio.Future[Mapping[str, Kept]] = loop.create_future()
        # Everybody may have given up waiting by the time that it fails.
        self.future.add_done_callback(lambda future: future.cancelled() or future.exception())

    def follow(self, reading: asyncio.Task[dict[str, Kept]]) -> None:
        """Answer with what the reading finds."""
        reading.add_done_callback(self._finish)

    def _finish(self, reading: asyncio.Task[dict[str, Kept]]) -> None:
        if reading.cancelled():
            self.future.cancel()
        elif (exc := reading.exception()) is not None:
            self.future.set_exception(exc)
        else:
            self.future.set_result(reading.result())
