"""The embedded default: queues in an SQL database, shared by every process that opens the same one."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Collection, Sequence

from sqlalchemy.engine import Connection

from celeriac.brokers import rows
from celeriac.brokers.base import Broker, DeadLetter, Delayed, Publication, Received, Settlement
from celeriac.brokers.exchanges import refuse_headers, settlements_to_queues, to_queues
from celeriac.brokers.waiting import until_due
from celeriac.errors import BrokerUnavailable
from celeriac.protocol.exchanges import Binding
from celeriac.sql import bindings as bindings_table
from celeriac.sql import leases, messages
from celeriac.sql.database import Database
from celeriac.sql.engine import absolute_url
from celeriac.sql.stalls import MERCY, Sparing

__all__ = ["SQLBroker"]

#: Messages that one transaction purges, so that publishers get their turn in between.
_PURGE_LIMIT = 10_000

#: Seconds between two looks at who has been spared.
_PAUSE = 0.1


class SQLBroker(Broker):
    """A broker in one SQL database.

    Args:
        url: SQLAlchemy's: ``sqlite:///celery.db``.
        lease: Seconds that a delivery belongs to its consumer unless renewed.

    Raises:
        ConfigurationError: The URL cannot work here.
    """

    def __init__(self, url: str, *, lease: float = 30.0) -> None:
        self.lease = lease
        self._url = absolute_url(url).render_as_string(hide_password=False)
        self._opening = asyncio.Lock()
        self._opened: Database | None = None
        self._turn = 0
        self._sparing = Sparing()

    @property
    def _database(self) -> Database:
        if self._opened is None:
            raise BrokerUnavailable("The broker is not open.")
        return self._opened

    async def open(self) -> None:
        """Open the database, and create the file and its tables when they are missing. Safe to call twice."""
        async with self._opening:
            if self._opened is None:
                database = Database.shared(self._url)
                await database.open()
                self._opened = database

    async def close(self) -> None:
        """Release the database; what was submitted is finished first. Safe to call twice."""
        async with self._opening:
            database, self._opened = self._opened, None
            if database is not None:
                await database.close()

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Store the messages in one transaction. Raises TypeError for headers that JSON cannot express."""
        if not all(each.queue for each in publications):
            publications = await to_queues(self.bindings, publications)
        if publications:
            # Encoded here, not in the transaction, which keeps other processes waiting.
            drafts = rows.drafts(publications)
            await self._database.write(lambda connection: messages.insert(connection, drafts))

    async def bind(self, bindings: Sequence[Binding]) -> None:
        """Remember bindings, where there is something new."""
        refuse_headers(bindings)

        def missing(connection: Connection) -> list[Binding]:
            return [each for each in bindings if not bindings_table.exists(connection, each[:4])]

        def add(connection: Connection) -> None:
            for each in new:
                bindings_table.bind(connection, each[:4])

        if new := await self._database.read(missing):
            await self._database.write(add)

    async def bindings(self, exchange: str) -> Sequence[Binding]:
        """The bindings of an exchange to queues that live."""
        now = time.time()
        rows = await self._database.read(lambda connection: bindings_table.bound(connection, exchange, now))
        return [Binding(*row[:4]) for row in rows]

    async def receive(self, queues: Sequence[str], limit: int) -> Received:
        """Lease up to ``limit`` messages, fairly from the queues."""
        fair = rows.rotated(queues, self._turn)
        self._turn += 1

        def take(connection: Connection) -> tuple[list[messages.Taken], float | None]:
            now = time.time()
            if self._database.failing:
                # Nobody could renew. That this is written says that they can now, and all processes see it.
                leases.spare(connection, now, now + MERCY)
            spared = self._spares_leases(now)
            taken = messages.take(connection, fair, limit, self.lease, now, spare_leases=spared)
            return taken, messages.next_due(connection)

        taken, next_due = await self._database.write(take)
        return Received([rows.delivery(row) for row in taken], next_due)

    def _spares_leases(self, now: float) -> bool:
        """Whether not to take over what others hold: they could not renew it, as the database was held up."""
        return self._sparing.spares(self._database.last_stall(), self.lease, now)

    async def wait(self, queues: Sequence[str], timeout: float | None = None) -> None:
        """Sleep until somebody has committed something for these queues, or something falls due."""
        await until_due(lambda: self._pause(queues), self._database.on_change, timeout)

    async def _pause(self, queues: Sequence[str]) -> float:
        """Seconds until something can be received, as far as is known now."""
        now = time.time()
        if self._spares_leases(now):
            return min(_PAUSE, self._sparing.until - now)

        def look(connection: Connection) -> float:
            if messages.has_ready(connection, queues, now):
                return 0.0
            due = messages.next_due(connection)
            return math.inf if due is None else due - now

        return await self._database.read(look)

    async def settle(self, settlements: Sequence[Settlement]) -> Collection[str]:
        """End deliveries and publish what comes of them, all in one transaction. Returns the void tags."""
        if not settlements:
            return ()
        settlements = await settlements_to_queues(self.bindings, settlements)
        now = time.time()
        endings = [rows.ending(settlement, now) for settlement in settlements]
        drafts = rows.successors(settlements)

        def settle(connection: Connection) -> set[str]:
            void = messages.settle(connection, endings)
            messages.insert(connection, [new for tag in drafts if tag not in void for new in drafts[tag]])
            return void

        return await self._database.write(settle)

    async def renew(self, tags: Sequence[str]) -> Collection[str]:
        """Start the leases of these deliveries anew. Returns the void tags."""
        if not tags:
            return ()
        return await self._database.write(
            lambda connection: messages.renew(connection, tags, self.lease, time.time())
        )

    def renewer(self) -> SQLBroker:
        """A second client of the same queues."""
        return SQLBroker(self._url, lease=self.lease)

    async def size(self, queue: str) -> int:
        """How many messages wait to be delivered now."""
        return await self._database.read(lambda connection: messages.size(connection, queue, time.time()))

    async def delayed(self, queue: str, limit: int = 100) -> Sequence[Delayed]:
        """What waits for its time in the queue, the earliest first."""
        now = time.time()
        found = await self._database.read(lambda connection: messages.delayed(connection, queue, limit, now))
        return [rows.delayed(row) for row in found]

    async def purge(self, queue: str) -> int:
        """Delete the waiting and delayed messages of the queue. Returns how many."""
        database, now, gone = self._database, time.time(), 0
        while True:
            batch = await database.write(
                lambda connection: messages.purge(connection, queue, now, _PURGE_LIMIT)
            )
            gone += batch
            if batch < _PURGE_LIMIT:
                return gone

    async def dead_letters(self, queue: str | None = None, limit: int = 100) -> Sequence[DeadLetter]:
        """The dead letters of one queue, or of all, newest first."""
        buried = await self._database.read(lambda connection: messages.dead_letters(connection, queue, limit))
        return [rows.dead_letter(row) for row in buried]

    async def replay(self, ids: Sequence[str]) -> int:
        """Put dead letters back into their queues. Returns how many were found."""
        return await self._database.write(lambda connection: messages.replay(connection, rows.numbers(ids)))
