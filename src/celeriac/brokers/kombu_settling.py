"""How deliveries of a transport that leases its messages end: finished, put off, replaced by a copy, or buried."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import NamedTuple

from celeriac.brokers.base import Publication, Settlement
from celeriac.brokers.kombu_keeping import Keeping
from celeriac.brokers.kombu_kept import Kept
from celeriac.brokers.kombu_leases import Leases
from celeriac.brokers.kombu_outbox import Outbox
from celeriac.brokers.kombu_partly import Successors
from celeriac.brokers.kombu_polls import Arrival
from celeriac.brokers.kombu_sources.held import HeldSource, Sealed, properties_in
from celeriac.brokers.kombu_thread import SourceThread
from celeriac.errors import MalformedMessage
from celeriac.protocol import envelope
from celeriac.protocol.settlement import Action

__all__ = ["Settling"]

#: Seconds for one call.
_PATIENCE = 40.0


class _Ending(NamedTuple):
    """What becomes of a message that is ours: it ends, or is for others after ``delay`` seconds."""

    arrival: Arrival
    delay: float | None = None


class Settling:
    """Ends messages, each after what takes its place or comes of it is there: a crash in between loses nothing.

    Args:
        thread: Has the source that messages are received from.
        facts: A source, never opened: asked for what it can do.
        leases: Whose the messages are.
        keeping: Takes dead letters, and copies that are delayed for longer than the transport can.
        outbox: Takes all other copies.
        publish: Sends what deliveries leave behind.
    """

    def __init__(
        self,
        thread: SourceThread[HeldSource],
        facts: HeldSource,
        leases: Leases,
        keeping: Keeping,
        outbox: Outbox,
        publish: Callable[[Sequence[Publication]], Awaitable[None]],
    ) -> None:
        self._thread = thread
        self._facts = facts
        self._leases = leases
        self._keeping = keeping
        self._outbox = outbox
        self._successors = Successors(publish)

    async def settle(self, settlements: Sequence[Settlement]) -> Collection[str]:
        """End deliveries. Returns the void tags. What fails can be tried again: what is done is not repeated."""
        held = await self._leases.ours(self._thread, [each.tag for each in settlements])
        ours = [(each, held[each.tag]) for each in settlements if each.tag in held]
        await self._successors.publish([each for each, _ in ours])
        endings = await asyncio.gather(
            *(self._ending(each, arrival) for each, arrival in ours), return_exceptions=True
        )
        for ending in endings:
            if isinstance(ending, BaseException):
                raise ending
        await self._end([each for each in endings if isinstance(each, _Ending)])
        for each, _ in ours:
            self._leases.release(each.tag)
        self._successors.forget(each.tag for each in settlements)
        return [each.tag for each in settlements if each.tag not in held]

    async def _ending(self, settlement: Settlement, arrival: Arrival) -> _Ending:
        """What is to be done to the message, after whatever takes its place is there."""
        if settlement.action is Action.DEAD_LETTER and not arrival.replaced:
            await self._keeping.bury([_dead(arrival, settlement.reason)])
            arrival.replaced = True
        if settlement.action is not Action.REQUEUE:
            return _Ending(arrival)
        delay = 0.0 if settlement.due is None else max(0.0, settlement.due - time.time())
        if self._may_stay(settlement, arrival, delay):
            return _Ending(arrival, delay)
        if not arrival.replaced:
            await self._copy(arrival, delay, arrival.taken.deliveries - (0 if settlement.counted else 1))
            arrival.replaced = True
        return _Ending(arrival)

    def _may_stay(self, settlement: Settlement, arrival: Arrival, delay: float) -> bool:
        """Whether the message itself may come again: a copy costs more, but is counted otherwise, or waits longer."""
        if arrival.gone or arrival.replaced or not self._leases.can_hold(arrival, delay):
            return False
        return settlement.counted or self._facts.keeps_order_in(arrival.taken.queue)

    async def _copy(self, arrival: Arrival, delay: float, deliveries: int) -> None:
        queue, made = arrival.taken.queue, _envelope(arrival)
        if delay > self._facts.delay_in(queue):
            await self._keeping.delay(
                [Kept(queue, made, time.time() + delay, deliveries)], self._facts.delay_in
            )
            return
        # Another message: a FIFO queue would take it for the one that it replaces.
        properties = {k: v for k, v in properties_in(made).items() if k != "MessageDeduplicationId"}
        await self._outbox.put([Sealed(queue, made, delay, deliveries, properties)])

    async def _end(self, endings: Sequence[_Ending]) -> None:
        there = [each for each in endings if not each.arrival.gone and not each.arrival.ended]
        if there:
            start = time.monotonic()
            unknown: list[_Ending] = []
            await self._thread.run(_call(there, unknown), deadline=_PATIENCE, again=True)
            await self._restore([each for each in unknown if each.arrival.until > start])

    async def _restore(self, lost: Sequence[_Ending]) -> None:
        """Send again what the transport had lost under its lease, and what was to come again."""
        for each in lost:
            each.arrival.gone = True
        await asyncio.gather(
            *(self._copy(each.arrival, each.delay or 0.0, each.arrival.taken.deliveries) for each in lost)
        )


def _call(endings: Sequence[_Ending], unknown: list[_Ending]) -> Callable[[HeldSource], None]:
    """What ends the messages, in the thread of the source. Those that the transport does not know become ``unknown``.

    Called again after a failure, it goes on, here or in another settlement: what was made visible is not ours to renew.
    """
    finished = [each.arrival.taken for each in endings if each.delay is None]
    put_off: dict[int, list[_Ending]] = {}
    for each in endings:
        if each.delay is not None:
            put_off.setdefault(math.ceil(each.delay), []).append(each)
    groups = list(put_off.items())

    def end(source: HeldSource) -> None:
        if finished:
            source.finish(finished)
            finished.clear()
        while groups:
            seconds, group = groups[0]
            lost = {each.handle for each in source.renew([each.arrival.taken for each in group], seconds)}
            unknown.extend(each for each in group if each.arrival.taken.handle in lost)
            for each in group:
                each.arrival.ended = each.arrival.taken.handle not in lost
            groups.pop(0)

    return end


def _envelope(arrival: Arrival) -> bytes:
    made = arrival.taken.envelope
    if isinstance(made, bytes):
        return made
    raise TypeError("A source that holds hands over envelopes.")


def _dead(arrival: Arrival, reason: str) -> Kept:
    taken, made = arrival.taken, _envelope(arrival)
    task_id = task = ""
    try:
        headers = envelope.decode(made).headers
        task_id, task = (each if type(each := headers.get(name)) is str else "" for name in ("id", "task"))
    except MalformedMessage:
        pass
    return Kept(taken.queue, made, time.time(), taken.deliveries, task_id, task, reason)
