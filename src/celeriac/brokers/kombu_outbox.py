"""What is published while a call is under way goes together in the next one, and each publisher hears of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from celeriac.brokers.kombu_partly import failure
from celeriac.brokers.kombu_sources.held import Sealed
from celeriac.errors import BrokerUnavailable, again

__all__ = ["Outbox"]

#: Messages in one call of the thread.
_MOST = 1000

_Waiting = tuple[Sequence[Sealed], "asyncio.Future[None]"]


class Outbox:
    """Sends by ``send``, one call at a time, which returns what was not taken, by its place, and why.

    Nothing is sent again here: what a transport without transactions has taken is its own.
    """

    def __init__(
        self, send: Callable[[Sequence[Sealed]], Awaitable[Mapping[int, BrokerUnavailable]]]
    ) -> None:
        self._send = send
        self._waiting: list[_Waiting] = []
        self._runner: asyncio.Task[None] | None = None

    async def put(self, messages: Sequence[Sealed]) -> None:
        """Return when all of them are in the transport.

        Raises BrokerUnavailable for the first that is not, and PartlyPublished where others are.
        """
        if not messages:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((messages, future))
        if self._runner is None:
            self._runner = asyncio.get_running_loop().create_task(self._run())
        await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._flush(self._next())
        finally:
            self._runner = None

    def _next(self) -> list[_Waiting]:
        """Those who go together: one at least, and as many as there is room for."""
        room = _MOST
        batch: list[_Waiting] = []
        while self._waiting and (not batch or len(self._waiting[0][0]) <= room):
            batch.append(self._waiting.pop(0))
            room -= len(batch[-1][0])
        return batch

    async def _flush(self, batch: Sequence[_Waiting]) -> None:
        try:
            failed = await self._send([each for messages, _ in batch for each in messages])
        except BrokerUnavailable as exc:
            for _, future in batch:
                if not future.done():
                    future.set_exception(again(exc))
            return
        except BaseException as exc:
            for _, future in batch:
                if not future.done():
                    future.set_exception(exc)
            raise
        start = 0
        for messages, future in batch:
            errors = {n: failed[start + n] for n in range(len(messages)) if start + n in failed}
            start += len(messages)
            if future.done():
                continue
            if errors:
                taken = set(range(len(messages))).difference(errors)
                future.set_exception(failure(taken, again(next(iter(errors.values())))))
            else:
                future.set_result(None)
