"""What a transport cannot hold itself, in the keeper: a broker of ours, beside the records.

Delays beyond the transport's own wait there, and are sent by whichever process sees first that it is time. Dead letters
stay there until they are replayed. Bindings of exchanges are there for all processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from celeriac.brokers.base import Broker, DeadLetter, Delayed, PartlyPublished, Publication, Settlement
from celeriac.brokers.kombu_kept import Kept, burial, dead_letter, read
from celeriac.errors import BrokerUnavailable
from celeriac.protocol.exchanges import Binding, binding, is_fanout
from celeriac.protocol.settlement import Action

__all__ = ["Keeping"]

logger = logging.getLogger("celeriac.brokers.kombu")

#: Messages that are moved at a time.
_AT_ONCE = 100

#: Seconds between two looks for queues that other processes have begun to use.
_LOOK = 30.0

#: Seconds between attempts while one of the two servers is away: from, to.
_BACKOFF = (0.2, 5.0)

#: How a binding that takes everything is written here: as a fanout, the keeper would serve it in its own way.
_ANYTHING = ".*"

#: Dead letters of one queue that are looked through.
_MOST = 10_000

Send = Callable[[Sequence[Kept]], Awaitable[None]]


class Keeping:
    """The part of the keeper that belongs to one place of a transport.

    Args:
        keeper: A broker of ours that is durable.
        identity: Names the place, so that several can share a keeper.
        send: Puts delayed messages into the transport; they may still have to wait there.
    """

    def __init__(self, keeper: Broker, identity: str, send: Send) -> None:
        self._keeper = keeper
        self._identity = identity
        self._send = send
        self._queues: set[str] = set()
        self._known: set[str] = set()
        self._owed: list[Binding] = []
        self._opening = asyncio.Lock()
        self._opened = False
        self._mover: asyncio.Task[None] | None = None
        self._poke = asyncio.Event()

    def start(self) -> None:
        """Begin to move what is due."""
        if self._mover is None:
            self._mover = asyncio.get_running_loop().create_task(self._move())

    async def close(self) -> None:
        """Stop moving, and leave the keeper."""
        mover, self._mover = self._mover, None
        if mover is not None:
            mover.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await mover
        if self._opened:
            self._opened = False
            await self._keeper.close()

    async def _open(self) -> Broker:
        async with self._opening:
            if not self._opened:
                await self._keeper.open()
                self._opened = True
        return self._keeper

    # -- delays ----------------------------------------------------------------------------------------------------

    async def delay(self, messages: Sequence[Kept], ahead: Callable[[str], float]) -> None:
        """Keep messages until their time, or as many seconds before as ``ahead`` says of their queue."""
        if not messages:
            return
        keeper = await self._open()
        await self._register({each.queue for each in messages})
        await keeper.publish(
            [
                Publication(
                    each.to_message(),
                    self._delayed(each.queue),
                    task_id=each.task_id,
                    due=each.at - ahead(each.queue),
                )
                for each in messages
            ]
        )
        self._poke.set()

    async def delayed(self, queue: str, limit: int) -> list[Delayed]:
        """What waits here for its time."""
        keeper = await self._open()
        found = [read(each.envelope) for each in await keeper.delayed(self._delayed(queue), limit)]
        return [Delayed(each.queue, each.at, each.envelope) for each in found if each is not None]

    async def purge(self, queue: str) -> int:
        """Forget what waits here for its time."""
        keeper = await self._open()
        return await keeper.purge(self._delayed(queue))

    async def _move(self) -> None:
        pause, longest = _BACKOFF
        while True:
            try:
                await self._move_once()
            except BrokerUnavailable as exc:
                logger.warning("Delayed messages cannot be moved, trying again in %.1f s: %s", pause, exc)
            except Exception:
                logger.exception("Delayed messages cannot be moved, trying again in %.1f s", pause)
            else:
                pause = _BACKOFF[0]
                continue
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    async def _move_once(self) -> None:
        """Send what is due, or wait for something to be."""
        keeper = await self._open()
        self._poke.clear()
        await self._bind_owed()
        self._queues |= {each.routing_key for each in await keeper.bindings(self._registry)}
        places = [self._delayed(queue) for queue in sorted(self._queues)]
        deliveries = (await keeper.receive(places, _AT_ONCE)).deliveries if places else ()
        if not deliveries:
            await self._sleep(places)
            return
        found = [(each, read(each.envelope)) for each in deliveries]
        settlements = [burial(each) for each, kept in found if kept is None]
        sent = [each for each, kept in found if kept is not None]
        error: Exception | None = None
        try:
            await self._send([kept for _, kept in found if kept is not None])
        except PartlyPublished as exc:
            sent, error = [sent[at] for at in exc.published], exc.error
        # After it is sent: a process that dies in between sends it twice, and none is lost.
        settlements += [Settlement(each.tag, Action.ACKNOWLEDGE) for each in sent]
        await keeper.settle(settlements)
        if error is not None:
            raise error  # what was refused comes again when its lease ends

    async def _sleep(self, places: Sequence[str]) -> None:
        waiting: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._poke.wait())]
        if places:
            waiting.append(asyncio.ensure_future(self._keeper.wait(places)))
        try:
            await asyncio.wait(waiting, timeout=_LOOK, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    # -- dead letters ----------------------------------------------------------------------------------------------

    async def bury(self, letters: Sequence[Kept]) -> None:
        """Keep dead letters until somebody replays them."""
        keeper = await self._open()
        await self._register({each.queue for each in letters})
        await keeper.publish(
            [Publication(each.to_message(), self._dead(each.queue), task_id=each.task_id) for each in letters]
        )
        for queue in {each.queue for each in letters}:
            await self._bury_all(queue)

    async def _bury_all(self, queue: str) -> None:
        """Make dead letters of what waits in the queue of dead letters: there nobody else receives."""
        while deliveries := (await self._keeper.receive([self._dead(queue)], _AT_ONCE)).deliveries:
            await self._keeper.settle([burial(each) for each in deliveries])

    async def dead_letters(self, queue: str | None, limit: int) -> list[DeadLetter]:
        """Those of one queue, or of all, newest first."""
        found = await self._letters(queue, limit)
        return [letter for letter, _ in found[:limit]]

    async def _letters(self, queue: str | None, limit: int) -> list[tuple[DeadLetter, Kept]]:
        keeper = await self._open()
        queues = [queue] if queue is not None else await self._registered()
        found: list[tuple[DeadLetter, Kept]] = []
        for name in queues:
            await self._bury_all(name)  # what a process that died has left half buried
            for letter in await keeper.dead_letters(self._dead(name), limit):
                if (kept := read(letter.envelope)) is not None:
                    found.append((dead_letter(letter, kept), kept))
        return sorted(found, key=lambda each: each[0].at, reverse=True)

    async def replay(self, ids: Sequence[str]) -> int:
        """Send dead letters again, and then take them out. Returns how many were found.

        Whoever looks at the same moment may bury one again before it is sent: then it is still there, and not counted.
        Where it fails after some were sent, the error says that it is ``unconfirmed``.
        """
        keeper = await self._open()
        asked = frozenset(ids)
        wanted = [each for each in await self._letters(None, _MOST) if each[0].id in asked]
        sent: list[str] = []
        try:
            for letter, kept in wanted:
                await self._replay(keeper, letter, kept, sent)
        except BrokerUnavailable as exc:
            exc.unconfirmed = exc.unconfirmed or bool(sent)
            raise
        return len(sent)

    async def _replay(self, keeper: Broker, letter: DeadLetter, kept: Kept, sent: list[str]) -> None:
        """Send a dead letter again; its id is then among those ``sent``."""
        await keeper.replay([letter.id])
        for each in (await keeper.receive([self._dead(kept.queue)], _AT_ONCE)).deliveries:
            if read(each.envelope) != kept:
                await keeper.settle([burial(each)])
                continue
            try:
                await self._send([replace(kept, at=0.0, deliveries=0)])
            except BaseException:
                await keeper.settle([burial(each)])
                raise
            sent.append(letter.id)
            await keeper.settle([Settlement(each.tag, Action.ACKNOWLEDGE)])

    # -- exchanges -------------------------------------------------------------------------------------------------

    async def bind(self, bindings: Sequence[Binding]) -> None:
        """Remember bindings for all processes; later, while the keeper is away: no worker waits for that."""
        self._owed += [self._foreign(each) for each in bindings]
        try:
            await self._bind_owed()
        except BrokerUnavailable as exc:
            if exc.permanent:
                raise
            logger.warning("Exchanges do not find the queues of this process yet: %s", exc)

    async def _bind_owed(self) -> None:
        if owed := list(self._owed):
            keeper = await self._open()
            await keeper.bind(owed)
            del self._owed[: len(owed)]

    async def bindings(self, exchange: str) -> list[Binding]:
        """The bindings of an exchange of the transport."""
        keeper = await self._open()
        return [
            each._replace(exchange=exchange, pattern="^" if each.pattern == _ANYTHING else each.pattern)
            for each in await keeper.bindings(f"{self._identity}|{exchange}")
        ]

    def _foreign(self, bound: Binding) -> Binding:
        pattern = _ANYTHING if is_fanout(bound) else bound.pattern
        return bound._replace(exchange=f"{self._identity}|{bound.exchange}", pattern=pattern)

    # -- names -----------------------------------------------------------------------------------------------------

    def _delayed(self, queue: str) -> str:
        return f"{self._identity}|delayed|{queue}"

    def _dead(self, queue: str) -> str:
        return f"{self._identity}|dead|{queue}"

    @property
    def _registry(self) -> str:
        """An exchange of the keeper by whose bindings all processes know the queues that something is kept for."""
        return f"{self._identity}|kept"

    async def _registered(self) -> list[str]:
        keeper = await self._open()
        return sorted({each.routing_key for each in await keeper.bindings(self._registry)})

    async def _register(self, queues: set[str]) -> None:
        if missing := queues - self._known:
            keeper = await self._open()
            await keeper.bind(
                [binding(self._registry, "direct", each, self._delayed(each)) for each in sorted(missing)]
            )
            self._known |= missing
