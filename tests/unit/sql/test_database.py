"""The database behind asyncio: groups, isolation of failures, opening and closing, loops and threads."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from celeriac.errors import BrokerUnavailable
from celeriac.sql import engine as sql_engine
from celeriac.sql.database import Database


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database.shared(database_url)
    await database.open()
    await database.write(
        lambda connection: connection.exec_driver_sql("CREATE TABLE t (a INTEGER UNIQUE)") and None
    )
    yield database
    await database.close()


def insert(value: object) -> Callable[[Connection], object]:
    def run(connection: Connection) -> object:
        connection.exec_driver_sql("INSERT INTO t VALUES (?)", (value,))
        return value

    return run


def values(connection: Connection) -> list[Any]:
    return list(connection.exec_driver_sql("SELECT a FROM t ORDER BY rowid").scalars())


class _Gate:
    """Holds the writing thread, so that what is submitted meanwhile becomes one group."""

    def __init__(self, database: Database) -> None:
        self._entered, self._leave = threading.Event(), threading.Event()
        self._future = database.write(self._wait)

    def _wait(self, _connection: Connection) -> None:
        self._entered.set()
        self._leave.wait(20)

    async def __aenter__(self) -> None:
        await asyncio.to_thread(self._entered.wait, 20)

    async def __aexit__(self, *_: object) -> None:
        self._leave.set()
        await self._future


def _engine_of(database: Database) -> Engine:
    assert database._parts is not None
    return database._parts.engine


async def test_commits_together_what_was_submitted_together(database: Database) -> None:
    commits: list[Connection] = []
    sa.event.listen(_engine_of(database), "commit", commits.append)
    async with _Gate(database):
        futures = [database.write(insert(n)) for n in range(100)]
        assert not any(future.done() for future in futures)

    assert await asyncio.gather(*futures) == list(range(100))
    assert len(commits) == 2
    assert await database.read(values) == list(range(100))


async def test_what_is_submitted_in_one_tick_of_the_loop_is_one_transaction(database: Database) -> None:
    commits: list[Connection] = []
    sa.event.listen(_engine_of(database), "commit", commits.append)

    async def write(value: int) -> None:
        await database.write(insert(value))

    await asyncio.gather(*(write(n) for n in range(10)))
    assert len(commits) == 1


async def test_closing_waits_for_what_was_submitted_in_the_same_tick(database: Database) -> None:
    future = database.write(insert(1))
    assert database._parts is not None
    await asyncio.to_thread(database._parts.writer.stop)
    assert await future == 1


async def test_a_failure_spoils_nothing_for_its_neighbours(database: Database) -> None:
    def fail(connection: Connection) -> None:
        connection.exec_driver_sql("INSERT INTO t VALUES (99)")
        raise LookupError("mine")

    def stop(_connection: Connection) -> None:
        raise StopIteration

    async with _Gate(database):
        futures = [database.write(insert(n)) for n in (1, 2)]
        futures.append(database.write(fail))
        futures.append(database.write(insert(3)))
        futures.append(database.write(insert(1)))  # not unique
        futures.append(database.write(stop))
        futures.append(database.write(insert(4)))
    results = await asyncio.gather(*futures, return_exceptions=True)

    assert [type(result) for result in results] == [
        int,
        int,
        LookupError,
        int,
        BrokerUnavailable,
        RuntimeError,
        int,
    ]
    assert await database.read(values) == [1, 2, 3, 4]


async def test_a_failed_read_spoils_nothing_for_its_neighbours(database: Database) -> None:
    await database.write(insert(1))

    results = await asyncio.gather(
        database.read(values),
        database.read(lambda connection: connection.exec_driver_sql("SELECT wrong")),
        database.read(values),
        return_exceptions=True,
    )

    assert results[0] == results[2] == [1]
    assert isinstance(results[1], BrokerUnavailable)


async def test_a_database_that_fails_tells_every_waiter(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_engine, "BUSY_DEADLINE", 0.05)
    with contextlib.closing(sqlite3.connect(str(_engine_of(database).url.database))) as other:
        other.execute("BEGIN IMMEDIATE")
        results = await asyncio.gather(*(database.write(insert(n)) for n in range(5)), return_exceptions=True)
        assert await database.read(values) == []
        other.rollback()

    assert [type(result) for result in results] == [BrokerUnavailable] * 5
    assert len({id(result) for result in results}) == 5  # raising one must not touch the others
    assert await database.write(insert(7)) == 7


async def test_a_cancelled_operation_disturbs_nobody(database: Database) -> None:
    async with _Gate(database):
        futures = [database.write(insert(n)) for n in range(3)]
        futures[1].cancel()

    assert await futures[0] == 0
    assert await futures[2] == 2
    assert await database.read(values) == [0, 2]


@pytest.mark.parametrize("neighbours", [0, 2])
async def test_what_is_cancelled_while_the_database_is_locked_does_not_happen(
    neighbours: int, database: Database
) -> None:
    path = str(_engine_of(database).url.database)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        cancelled, *kept = [database.write(insert(n)) for n in range(neighbours + 1)]
        async with asyncio.timeout(20):
            while not sql_engine._turns[path].locked():  # until the thread waits with them
                await asyncio.sleep(0.001)
        cancelled.cancel()
        other.rollback()
        await asyncio.gather(*kept, database.write(insert(7)))
    assert await database.read(values) == [*range(1, neighbours + 1), 7]


async def test_a_read_sees_every_finished_write(database: Database) -> None:
    for n in range(50):
        await database.write(insert(n))
        assert (await database.read(values))[-1] == n


async def test_close_finishes_what_was_submitted(database_url: str) -> None:
    database = Database.shared(database_url)
    await database.open()
    await database.write(lambda connection: connection.exec_driver_sql("CREATE TABLE t (a)") and None)
    futures = [database.write(insert(n)) for n in range(50)]

    await database.close()

    assert await asyncio.gather(*futures) == list(range(50))
    with pytest.raises(BrokerUnavailable, match="not open"):
        database.write(insert(1))
    with pytest.raises(BrokerUnavailable, match="not open"):
        database.read(values)


async def test_the_last_close_ends_the_threads(database_url: str) -> None:
    database = Database.shared(database_url)
    await database.open()
    await database.open()
    await database.close()
    await database.read(lambda _connection: None)
    await database.close()
    await database.close()

    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("celeriac-sql")]
    await database.open()
    await database.read(lambda _connection: None)
    await database.close()


async def test_one_file_is_one_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Database.shared("sqlite:///celery.db") is Database.shared(f"sqlite:///{tmp_path}/celery.db")
    assert Database.shared("sqlite:///celery.db") is not Database.shared("sqlite:///other.db")


async def test_opens_after_the_trouble_is_over(tmp_path: Path) -> None:
    database = Database.shared(f"sqlite:///{tmp_path}/later/celery.db")
    with pytest.raises(BrokerUnavailable, match="folder exists"):
        await database.open()
    (tmp_path / "later").mkdir()

    await database.open()

    await database.read(lambda _connection: None)
    await database.close()


async def test_a_cancelled_open_leaves_nothing_behind(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database.shared(database_url)
    started, go_on, start = threading.Event(), threading.Event(), database._start

    def slowly() -> object:
        started.set()
        go_on.wait(20)
        return start()

    monkeypatch.setattr(database, "_start", slowly)
    opening = asyncio.create_task(database.open())
    await asyncio.to_thread(started.wait, 20)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    go_on.set()

    async with asyncio.timeout(20):
        while [thread for thread in threading.enumerate() if thread.name.startswith("celeriac-sql")]:
            await asyncio.sleep(0.01)
    with pytest.raises(BrokerUnavailable):
        database.read(values)


async def test_serves_loops_in_several_threads(database: Database) -> None:
    def work(start: int) -> None:
        async def write() -> None:
            await database.open()
            for n in range(start, start + 25):
                assert await database.write(insert(n)) == n
            await asyncio.gather(*(database.write(insert(n)) for n in range(start + 25, start + 50)))
            await database.close()

        asyncio.run(write())

    await asyncio.gather(*(asyncio.to_thread(work, start) for start in (0, 1000, 2000)))

    expected = [start + n for start in (0, 1000, 2000) for n in range(50)]
    assert sorted(await database.read(values)) == expected


async def test_a_loop_that_is_gone_disturbs_nobody(database: Database) -> None:
    def leave() -> None:
        async def submit() -> None:
            for n in range(10):
                database.write(insert(n))
            database.on_change(lambda: None)

        asyncio.run(submit())

    async with _Gate(database):
        await asyncio.to_thread(leave)

    assert await database.write(insert(100)) == 100
