"""Add the parts of many callers at once: those of one tick of the loop, or that came while others were being added."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from celeriac.errors import StoreUnavailable
from celeriac.stores.chords import ChordClaim, ChordPart

__all__ = ["PartBatches"]

#: Parts of one batch; one caller's may be more.
_LARGEST = 500


@dataclass(slots=True)
class _Caller:
    parts: Sequence[ChordPart]
    future: asyncio.Future[list[ChordClaim]]
    claims: list[ChordClaim] = field(default_factory=list)


class PartBatches:
    """Calls ``add``, one call at a time. Each claim goes to a caller who has brought a part of that chord.

    A claim whose caller was cancelled is kept for the next one, for ``patience`` seconds: as long as claims hold.
    """

    def __init__(
        self, add: Callable[[Sequence[ChordPart]], Awaitable[list[ChordClaim]]], patience: Callable[[], float]
    ) -> None:
        self._add = add
        self._patience = patience
        self._callers: list[_Caller] = []
        self._runner: asyncio.Task[None] | None = None
        self._left: dict[str, tuple[ChordClaim, float]] = {}

    async def add(self, parts: Sequence[ChordPart]) -> list[ChordClaim]:
        """Add parts with whatever else there is to add. Raises what adding them raises."""
        if not parts:
            return []
        loop = asyncio.get_running_loop()
        caller = _Caller(parts, loop.create_future())
        self._callers.append(caller)
        if self._runner is None:
            self._runner = loop.create_task(self._run())
        try:
            return await caller.future
        except asyncio.CancelledError:
            self._leave(caller.claims)
            raise

    async def drain(self) -> None:
        """Wait until what has been submitted is added, well or not."""
        while self._runner is not None:
            await asyncio.wait([self._runner])

    async def _run(self) -> None:
        try:
            while self._callers:
                await self._flush(self._next_batch())
        finally:
            self._runner = None

    def _next_batch(self) -> list[_Caller]:
        count = size = 0
        for caller in self._callers:
            size += len(caller.parts)
            if count and size > _LARGEST:
                break
            count += 1
        batch, self._callers = self._callers[:count], self._callers[count:]
        return [caller for caller in batch if not caller.future.done()]

    async def _flush(self, batch: Sequence[_Caller]) -> None:
        try:
            claims = await self._add([part for caller in batch for part in caller.parts]) if batch else []
        except Exception as exc:  # noqa: BLE001 - it belongs to those who wait
            if len(batch) == 1 or (isinstance(exc, StoreUnavailable) and not exc.permanent):
                _fail(batch, exc)
            else:
                # Nobody pays for a neighbour's mistake; what was added counts once.
                for caller in batch:
                    await self._flush([caller])
            return
        self._hand_out(batch, claims)

    def _hand_out(self, batch: Sequence[_Caller], claims: Sequence[ChordClaim]) -> None:
        waiting = [caller for caller in batch if not caller.future.done()]
        takers = {part.group_id: caller for caller in waiting for part in caller.parts}
        now = time.monotonic()
        kept = [
            claim for group_id, (claim, until) in self._left.items() if group_id in takers and until > now
        ]
        fresh = {claim.group_id for claim in claims}
        self._left = {
            group_id: left
            for group_id, left in self._left.items()
            if left[1] > now and group_id not in takers
        }
        for claim in [*claims, *(claim for claim in kept if claim.group_id not in fresh)]:
            taker = takers.get(claim.group_id)
            if taker is None:
                self._leave([claim])
            else:
                taker.claims.append(claim)
        for caller in waiting:
            caller.future.set_result(caller.claims)

    def _leave(self, claims: Sequence[ChordClaim]) -> None:
        until = time.monotonic() + self._patience()
        self._left |= {claim.group_id: (claim, until) for claim in claims}


def _fail(batch: Sequence[_Caller], error: Exception) -> None:
    for caller in batch:
        if not caller.future.done():
            caller.future.set_exception(error)
