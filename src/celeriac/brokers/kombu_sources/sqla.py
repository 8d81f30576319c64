"""kombu's SQLAlchemy transport: the same tables, in a way that a killed process loses nothing.

Stock workers mark a row as invisible when they take it, and leave it. Here a taken row has no visibility at all (NULL),
and the time of the taking as its timestamp; neither is anything to stock workers. When it is kept elsewhere it is
deleted, and when its taker died it becomes visible again after a lease.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import IntegrityError, NoSuchModuleError, OperationalError, ProgrammingError

from celeriac.brokers.base import Capabilities
from celeriac.brokers.kombu_sources.base import Outgoing, Source, Taken
from celeriac.brokers.kombu_sources.envelopes import fair_share, texts, without
from celeriac.errors import ConfigurationError

__all__ = ["SQLAlchemySource"]

#: Seconds between two looks for what a dead process has left.
_SWEEP = 2.0

#: Seconds between attempts to create the tables while somebody else does.
_CREATING = (0.02, 0.1, 0.3)

#: Rows in one statement, at most.
_ROWS = 500

#: Seconds that SQLite waits for another process's transaction.
_BUSY = 10.0

#: Databases where takers do not wait for one another's rows.
_SKIP_LOCKED = frozenset({"postgresql", "mysql", "mariadb", "oracle"})


class SQLAlchemySource(Source):
    """The tables of ``sqla+…`` URLs. Raises ConfigurationError for a URL that SQLAlchemy does not understand."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        delay=False, priority=False, lease=False, delivery_count=False, dead_letters=False, fanout=False
    )
    errors = (OSError, OperationalError)

    def __init__(self, url: str, *, options: Mapping[str, Any] | None = None, lease: float = 30.0) -> None:
        super().__init__(url, options=options, lease=lease)
        self._database = _database(url)
        self._queues, self._messages = _tables(
            self.options.get("queue_tablename") or "kombu_queue",
            self.options.get("message_tablename") or "kombu_message",
        )
        self._engine: Engine | None = None
        self._ids: dict[str, int] = {}
        self._turn = 0
        self._swept = 0.0

    @classmethod
    def load_driver(cls, url: str) -> None:
        """Import the database's driver. Raises ModuleNotFoundError, or ConfigurationError for an unknown database."""
        database = _database(url)
        try:
            database.get_dialect().import_dbapi()
        except NoSuchModuleError as exc:
            raise ConfigurationError(
                f"SQLAlchemy knows no database {database.drivername!r}: check the broker's URL."
            ) from exc

    @property
    def identity(self) -> str:
        """The place, and the table: one database may have several."""
        return f"{self.place}/{self._messages.name}"

    def open(self) -> None:
        """Connect, and create the tables when they are missing."""
        engine = sa.create_engine(self._database, **self._engine_options())
        self._engine = engine
        self._create_tables(engine)
        self._ids.clear()

    def _create_tables(self, engine: Engine) -> None:
        """Create what is missing, which another process may be doing at the same time."""
        for pause in (*_CREATING, None):
            try:
                self._queues.metadata.create_all(engine)
            except (OperationalError, ProgrammingError, IntegrityError):
                if pause is None or not sa.inspect(engine).has_table(self._queues.name):
                    raise
                time.sleep(pause)
            else:
                return

    def _engine_options(self) -> dict[str, Any]:
        options = without(self.options, "queue_tablename", "message_tablename")
        if self._database.get_backend_name() == "sqlite":
            options.setdefault("connect_args", {"timeout": _BUSY})
        return options

    def close(self) -> None:
        """Disconnect."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.dispose()

    def put(self, messages: Sequence[Outgoing]) -> None:
        """Insert the messages in one transaction."""
        envelopes = texts(messages)
        with self._connected() as connection:
            rows = [
                {
                    "visible": True,
                    "payload": text,
                    "version": 1,
                    "queue_id": self._queue_id(connection, queue),
                }
                for queue, text in zip((each.queue for each in messages), envelopes, strict=True)
            ]
            self._begin(connection)
            connection.execute(self._messages.insert(), rows)
            connection.commit()

    def take(self, queues: Sequence[str], limit: int, wait: float) -> list[Taken]:
        """Mark rows as taken, in a transaction of its own."""
        until = time.monotonic() + wait
        with self._connected() as connection:
            while True:
                self._sweep(connection)
                if taken := self._take(connection, queues, limit):
                    return taken
                left = until - time.monotonic()
                if left <= 0 or self.pause(min(left, self.polling_interval)):
                    return []

    def _take(self, connection: Connection, queues: Sequence[str], limit: int) -> list[Taken]:
        ids = {queue: found for queue in queues if (found := self._known_id(connection, queue)) is not None}
        # Looking costs nobody anything; only who finds something keeps others from writing.
        if limit < 1 or not ids or not self._any_visible(connection, ids.values()):
            connection.rollback()
            return []
        self._begin(connection)
        self._turn += 1

        def look(queue: str, limit: int) -> list[Taken]:
            rows = connection.execute(self._visible(ids[queue], limit))
            return [Taken(queue, _bytes(row.payload), row.id) for row in rows]

        taken = fair_share(list(ids), limit, self._turn, look)
        self._update(connection, [each.handle for each in taken], visible=None, timestamp=_now())
        connection.commit()
        return taken

    def _any_visible(self, connection: Connection, ids: Iterable[int]) -> bool:
        table = self._messages.c
        query = sa.select(table.id).where(table.queue_id.in_(list(ids)), table.visible == sa.true()).limit(1)
        return connection.execute(query).first() is not None

    def _visible(self, queue_id: int, limit: int) -> sa.Select[tuple[int, str]]:
        table = self._messages.c
        query = (
            sa.select(table.id, table.payload)
            .where(table.queue_id == queue_id, table.visible == sa.true())
            .order_by(table.timestamp, table.id)
            .limit(limit)
        )
        skips = self._database.get_backend_name() in _SKIP_LOCKED
        return query.with_for_update(skip_locked=skips)

    def finish(self, taken: Sequence[Taken]) -> None:
        """Delete the rows."""
        with self._connected() as connection:
            self._begin(connection)
            for ids in _chunks([each.handle for each in taken]):
                connection.execute(self._messages.delete().where(self._messages.c.id.in_(ids)))
            connection.commit()

    def give_back(self, taken: Sequence[Taken]) -> None:
        """Have the rows visible again."""
        with self._connected() as connection:
            self._begin(connection)
            self._update(connection, [each.handle for each in taken], visible=True, timestamp=None)
            connection.commit()

    def _sweep(self, connection: Connection) -> None:
        """Have visible again what was taken a lease ago."""
        if time.monotonic() - self._swept < min(_SWEEP, self.lease / 2):
            return
        self._swept = time.monotonic()
        table = self._messages.c
        late = _now() - datetime.timedelta(seconds=self.lease)
        query = sa.select(table.id).where(table.visible.is_(None), table.timestamp < late)
        ids = list(connection.execute(query).scalars())
        connection.rollback()
        if ids:
            self._begin(connection)
            self._update(connection, ids, visible=True, timestamp=None)
            connection.commit()

    def _update(self, connection: Connection, ids: Sequence[int], **values: Any) -> None:
        table = self._messages
        for some in _chunks(ids):
            update = table.update().where(table.c.id.in_(some))
            if values["visible"]:
                update = update.where(table.c.visible.is_(None))
            connection.execute(update.values(**values))

    def size(self, queue: str) -> int:
        """How many rows are visible."""
        table = self._messages.c
        with self._connected() as connection:
            found = self._known_id(connection, queue)
            query = sa.select(sa.func.count()).where(table.queue_id == found, table.visible == sa.true())
            return int(connection.execute(query).scalar_one()) if found is not None else 0

    def purge(self, queue: str) -> int:
        """Delete what is visible, and what stock workers have left behind. Returns how many were visible."""
        table = self._messages
        with self._connected() as connection:
            found = self._known_id(connection, queue)
            if found is None:
                return 0
            self._begin(connection)
            of_queue = table.delete().where(table.c.queue_id == found)
            gone = connection.execute(of_queue.where(table.c.visible == sa.true())).rowcount
            connection.execute(of_queue.where(table.c.visible == sa.false()))
            connection.commit()
            return int(gone)

    def _connected(self) -> Connection:
        if self._engine is None:
            raise OSError("it is not connected")
        return self._engine.connect()

    def _begin(self, connection: Connection) -> None:
        """SQLite locks at the first write, too late for what was read before: begin with the lock."""
        connection.rollback()
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    def _known_id(self, connection: Connection, queue: str) -> int | None:
        if queue not in self._ids:
            query = sa.select(self._queues.c.id).where(self._queues.c.name == queue)
            found = connection.execute(query).scalar()
            if found is None:
                return None
            self._ids[queue] = found
        return self._ids[queue]

    def _queue_id(self, connection: Connection, queue: str) -> int:
        found = self._known_id(connection, queue)
        while found is None:
            connection.rollback()
            try:
                connection.execute(self._queues.insert(), [{"name": queue}])
                connection.commit()
            except IntegrityError:
                connection.rollback()  # somebody else was quicker
            found = self._known_id(connection, queue)
        return found


def _database(url: str) -> sa.URL:
    try:
        return make_url(url.partition("+")[2])
    except sa.exc.ArgumentError as exc:
        raise ConfigurationError(
            "The broker's URL must be sqla+ and a URL of SQLAlchemy's, as in sqla+postgresql://user@host/database."
        ) from exc


def _tables(queues: str, messages: str) -> tuple[sa.Table, sa.Table]:
    """The tables exactly as kombu declares them, whoever of us creates them first."""
    metadata = sa.MetaData()
    # SQL Server's sequences begin where an INTEGER cannot follow.
    number = sa.Integer().with_variant(sa.BigInteger(), "mssql")
    options: dict[str, Any] = {"sqlite_autoincrement": True, "mysql_engine": "InnoDB"}
    queue_table = sa.Table(
        queues,
        metadata,
        sa.Column("id", number, sa.Sequence("queue_id_sequence"), primary_key=True, autoincrement=True),
        sa.Column("name", sa.String(200), unique=True),
        **options,
    )
    message_table = sa.Table(
        messages,
        metadata,
        sa.Column("id", number, sa.Sequence("message_id_sequence"), primary_key=True, autoincrement=True),
        sa.Column("visible", sa.Boolean, default=True, index=True),
        sa.Column("timestamp", sa.DateTime, nullable=True, index=True),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("version", sa.SmallInteger, nullable=False, default=1),
        sa.Column("queue_id", number, sa.ForeignKey(f"{queues}.id", name="FK_kombu_message_queue")),
        sa.Index("ix_kombu_message_timestamp_id", "timestamp", "id"),
        **options,
    )
    return queue_table, message_table


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)


def _bytes(payload: str | bytes) -> bytes:
    return payload if isinstance(payload, bytes) else payload.encode()


def _chunks(ids: Sequence[int]) -> Iterable[Sequence[int]]:
    return (ids[start : start + _ROWS] for start in range(0, len(ids), _ROWS))
