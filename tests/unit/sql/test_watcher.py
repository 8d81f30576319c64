"""Listeners hear of every commit, whoever made it, and cost nothing when there are none."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable

import pytest_asyncio
from sqlalchemy.engine import Connection

from celeriac.sql import engine as sql_engine
from celeriac.sql.database import Database


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database.shared(database_url)
    await database.open()
    yield database
    await database.close()


def touch(connection: Connection) -> None:
    connection.exec_driver_sql("INSERT INTO celeriac_queue (name, used_at) VALUES (hex(randomblob(8)), 0)")


async def _settled(database: Database, heard: asyncio.Event) -> None:
    """Until a listener has heard what was committed before it came."""
    await _hears(heard)
    await database.write(touch)
    await _hears(heard)


async def _hears(heard: asyncio.Event) -> None:
    async with asyncio.timeout(10):
        await heard.wait()
    heard.clear()


async def test_hears_of_commits_of_this_process(database: Database) -> None:
    heard = asyncio.Event()
    stop = database.on_change(heard.set)
    for _ in range(20):
        await database.write(touch)
        await _hears(heard)
    stop()


async def test_hears_of_commits_by_other_means(database: Database, database_url: str) -> None:
    heard = asyncio.Event()
    stop = database.on_change(heard.set)
    await _settled(database, heard)

    def write() -> None:
        engine = sql_engine.create_engine(database_url)
        sql_engine.write(engine, touch)
        engine.dispose()

    await asyncio.to_thread(write)

    await _hears(heard)
    stop()


async def test_hears_of_commits_of_other_processes(database: Database, database_url: str) -> None:
    code = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1])\n"
        "for line in sys.stdin:\n"
        "    connection.execute('INSERT INTO celeriac_queue (name, used_at) VALUES (?, 0)', (line,))\n"
        "    connection.commit()\n"
        "    print('done', flush=True)\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, database_url.removeprefix("sqlite:///"), stdin=-1, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    heard = asyncio.Event()
    stop = database.on_change(heard.set)
    await _settled(database, heard)
    for n in range(10):
        process.stdin.write(f"{n}\n".encode())
        assert await process.stdout.readline() == b"done\n"
        await _hears(heard)
    stop()
    process.stdin.close()
    await process.wait()


async def test_misses_nothing_while_listeners_come_and_go(database: Database) -> None:
    for _ in range(30):
        heard = asyncio.Event()
        stop = database.on_change(heard.set)
        await database.write(touch)
        await _hears(heard)
        stop()


async def test_a_listener_that_has_gone_hears_nothing(database: Database) -> None:
    gone, heard = asyncio.Event(), asyncio.Event()
    stop = database.on_change(gone.set)
    stop()
    stop()
    gone.clear()
    end = database.on_change(heard.set)
    await database.write(touch)
    await _hears(heard)
    end()

    assert not gone.is_set()


def _watcher_sleeps_for_ever() -> bool:
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "celeriac-sql-watch"]
    frame = sys._current_frames().get(thread.ident or 0)
    names = []
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return "wait" in names


async def test_sleeps_while_nobody_listens(database: Database) -> None:
    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.005)

    await until(_watcher_sleeps_for_ever)
    stop = database.on_change(lambda: None)
    await until(lambda: not _watcher_sleeps_for_ever())
    stop()
    await until(_watcher_sleeps_for_ever)
