"""A process that forks takes no SQLite connection with it, and both sides go on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = """
import asyncio, os, sys, threading
from celeriac.sql.database import Database
from celeriac.errors import BrokerUnavailable

url, path = sys.argv[1], sys.argv[1].removeprefix("sqlite:///")

def descriptors():
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            pass
    return [link for link in links if link.startswith(path)]

def insert(name):
    return lambda c: c.exec_driver_sql("INSERT INTO celeriac_queue (name, used_at) VALUES (?, 0)", (name,)) and None

async def child(inherited, n):
    assert descriptors() == [], descriptors()
    try:
        inherited.write(insert("wrong"))
    except BrokerUnavailable:
        pass
    else:
        raise AssertionError("wrote through the parent's threads")
    database = Database.shared(url)
    await database.open()
    for k in range(20):
        await database.write(insert(f"child-{n}-{k}"))
    await database.close()

async def main():
    database = Database.shared(url)
    await database.open()
    heard = asyncio.Event()
    database.on_change(heard.set)
    stopping = False

    async def write():
        n = 0
        while not stopping:
            await asyncio.gather(*(database.write(insert(f"parent-{n}-{k}")) for k in range(5)))
            n += 1
        return n * 5

    writing = asyncio.create_task(write())
    children = []
    for n in range(5):
        await asyncio.sleep(0.02)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                asyncio.events._set_running_loop(None)
                asyncio.run(child(database, n))
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    statuses = [(await asyncio.to_thread(os.waitpid, pid, 0))[1] for pid in children]
    stopping = True
    written = await writing
    assert statuses == [0] * 5, statuses
    heard.clear()
    await database.write(insert("last"))
    await asyncio.wait_for(heard.wait(), 10)
    rows = await database.read(lambda c: c.exec_driver_sql("SELECT count(*) FROM celeriac_queue").scalar())
    assert rows == written + 5 * 20 + 1, (rows, written)
    check = await database.read(lambda c: c.exec_driver_sql("PRAGMA integrity_check").scalar())
    assert check == "ok", check
    await database.close()

asyncio.run(main())
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
def test_parent_and_children_share_the_file_after_a_fork(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", _SCRIPT, f"sqlite:///{tmp_path}/celery.db"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (result.returncode, result.stderr) == (0, "")
