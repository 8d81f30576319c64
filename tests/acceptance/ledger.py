"""A folder with the ledger app: workers on it, tasks into it, and the reading of what the tasks wrote down."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.acceptance.processes import Launcher, Process, free_port, wait_until_up
from tests.services import RedisServer

from celeriac import Celery

SOURCES = Path(__file__).parent / "apps"


class Ledger:
    """The app of ``apps/ledger.py`` in a folder of its own.

    Args:
        folder: Where it is put.
        launcher: Starts its processes.
        url: The broker's, which is all that its processes are told; without one, that folder's ``celery.db``.
        conf: Celery's settings and ours, for its processes and its client.
        env: For its processes.
    """

    def __init__(
        self,
        folder: Path,
        launcher: Launcher,
        *,
        url: str | None = None,
        conf: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(exist_ok=True)
        for name in ("ledger.py", "ledger_api.py"):
            shutil.copy(SOURCES / name, folder)
        self.folder = folder
        self.launcher = launcher
        self.env = {**({"CELERY_BROKER_URL": url} if url else {}), **(env or {})}
        self.conf = dict(conf or {})
        #: A client of the same queue; it does not know the tasks, and need not.
        self.client = Celery(
            "client", broker=url or f"sqlite:///{folder / 'celery.db'}", set_as_current=False
        )
        self.client.conf.update(self.conf)

    def run(self, *arguments: str) -> Process:
        """Start a command in the folder."""
        env = {**self.env, "LEDGER_CONF": json.dumps(self.conf)}
        return self.launcher.start(arguments, cwd=self.folder, env=env)

    def start_worker(self, *options: str) -> Process:
        """Start ``celery worker``, and wait until it is ready."""
        worker = self.run_worker(*options)
        worker.wait_for_line(r" ready\.$")
        return worker

    def run_worker(self, *options: str) -> Process:
        """Start ``celery worker``."""
        return self.run("celery", "-A", "ledger", "worker", "--loglevel=info", *options)

    def start_api(self) -> tuple[Process, str]:
        """Start the API of ``apps/ledger_api.py``, and wait until it answers. Gives its URL, too."""
        url = f"http://127.0.0.1:{(port := free_port())}"
        api = self.run("uvicorn", "ledger_api:app", "--port", str(port))
        wait_until_up(f"{url}/docs", api)
        return api, url

    def stop_between_writes(self, process: Process) -> None:
        """Stop a process (SIGSTOP) while it does not hold the database's lock, which would keep all others waiting."""
        with contextlib.closing(sqlite3.connect(self.folder / "celery.db", timeout=30)) as connection:
            if "CELERY_BROKER_URL" not in self.env:
                connection.execute("BEGIN IMMEDIATE")
            process.signal(signal.SIGSTOP)

    def lines(self, what: str) -> Counter[str]:
        """How often each task has written ``start`` or ``end``."""
        counter: Counter[str] = Counter()
        for path in (self.folder / "ledger").glob("*.log"):
            for line in path.read_text().splitlines():
                kind, task_id, _pid, _at = line.split()
                if kind == what:
                    counter[task_id] += 1
        return counter


async def until(condition: Callable[[], bool], timeout: float = 30.0) -> None:
    """Wait until something is so that another process makes so."""
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.02)


def wait_until_nothing_is_held(server: RedisServer, timeout: float = 5.0) -> None:
    """Wait for the last acknowledgements: no message may be left in anybody's hands."""
    deadline = time.monotonic() + timeout
    with server.admin() as client:
        while left := {
            key: client.type(key)
            for key in ("unacked", "unacked_index", "celeriac:leases")
            if client.exists(key)
        }:
            assert time.monotonic() < deadline, f"Still there: {left}"
            time.sleep(0.02)
