"""The leases of what a broker has received from a transport that holds: whose, until when, and what is lost.

A worker's loop holds and settles, and its lease keeper's thread renews: both look here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from celeriac.brokers.kombu_polls import Arrival
from celeriac.brokers.kombu_sources.held import HeldSource
from celeriac.brokers.kombu_thread import SourceThread

__all__ = ["Leases"]

#: Seconds for one call.
_PATIENCE = 40.0

_Thread = SourceThread[HeldSource]


class Leases:
    """What is held, by tag.

    A message that the transport does not know is lost for one of two reasons. Where the lease had ended, somebody else
    has it, and the delivery is void. Where it had not, nobody can have it: it was purged, or its server has come back
    without it. The delivery then stays its consumer's, and what a requeue puts back is a copy.

    Args:
        longest: Seconds for which a message can be held.
        lease: Seconds that a renewal holds it.
    """

    def __init__(self, longest: float, lease: float) -> None:
        self._longest = longest
        self._lease = lease
        self._held: dict[str, Arrival] = {}

    def hold(self, tag: str, arrival: Arrival) -> None:
        """A delivery was handed over."""
        self._held[tag] = arrival

    def release(self, tag: str) -> None:
        """A delivery has ended."""
        self._held.pop(tag, None)

    def forget(self) -> None:
        """Hold nothing: what was held comes back when its lease ends."""
        self._held.clear()

    def next_end(self) -> float | None:
        """When the next lease ends, in epoch seconds."""
        ends = [each.until for each in list(self._held.values()) if not each.gone]
        return time.time() + min(ends) - time.monotonic() if ends else None

    def can_hold(self, arrival: Arrival, seconds: float) -> bool:
        """Whether a message can be kept from others for so long from now."""
        return time.monotonic() + seconds - arrival.since < self._longest

    async def ours(self, thread: _Thread, tags: Sequence[str]) -> dict[str, Arrival]:
        """Those of these deliveries that are not void. Asks only about those whose lease has ended, as far as is known.

        Raises BrokerUnavailable.
        """
        held = {tag: arrival for tag in tags if (arrival := self._held.get(tag)) is not None}
        now = time.monotonic()
        doubtful = [tag for tag, arrival in held.items() if arrival.until <= now and not arrival.gone]
        if doubtful:
            known = await self.renewed(thread, doubtful)
            held = {tag: arrival for tag, arrival in held.items() if tag not in doubtful or tag in known}
        return held

    async def renewed(self, thread: _Thread, tags: Sequence[str]) -> dict[str, Arrival]:
        """Renew; returns the deliveries that are not void. Raises BrokerUnavailable."""
        held = {tag: arrival for tag in tags if (arrival := self._held.get(tag)) is not None}
        now = time.monotonic()
        too_old = [tag for tag, each in held.items() if each.until <= now and not self.can_hold(each, 0)]
        asked = {
            tag: each for tag, each in held.items() if not each.gone and self.can_hold(each, self._lease)
        }
        lost = await self._renew(thread, list(asked.values()))
        void = {*too_old, *(tag for tag, each in asked.items() if each in lost)}
        for tag in void:
            self._held.pop(tag, None)
        return {tag: each for tag, each in held.items() if tag not in void}

    async def fresh(self, thread: _Thread, arrivals: Sequence[Arrival]) -> list[Arrival]:
        """What has waited here without a lease's half having passed, or was renewed."""
        half = time.monotonic() + self._lease / 2
        old = [each for each in arrivals if each.until < half]
        lost = await self._renew(thread, old)
        return [each for each in arrivals if each not in lost]

    async def _renew(self, thread: _Thread, arrivals: Sequence[Arrival]) -> list[Arrival]:
        """Renew; returns those that somebody else has."""
        if not arrivals:
            return []

        def renew(source: HeldSource) -> list[Arrival]:
            start = time.monotonic()
            by_handle = {each.taken.handle: each for each in arrivals}
            unknown = {each.handle for each in source.renew([each.taken for each in arrivals], self._lease)}
            ended = []
            for handle, each in by_handle.items():
                if handle not in unknown:
                    each.until = start + self._lease
                elif each.until > start:
                    each.gone = True
                else:
                    ended.append(each)
            return ended

        return await thread.run(renew, deadline=_PATIENCE, again=True)
