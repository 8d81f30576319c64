"""An app whose tasks write down each start and each end, for tests that kill its processes.

One append-only file per process, written with O_APPEND and a single ``write`` per line: what was written survives
SIGKILL of the writer.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from celeriac import Celery

celery = Celery("ledger")
celery.conf.update(
    {
        "celeriac_lease": 2.0,
        "celeriac_shutdown_grace": 10.0,
        **json.loads(os.environ.get("LEDGER_CONF", "{}")),
    }
)

LEDGER = Path(os.environ.get("LEDGER", "ledger"))


def note(what: str, task_id: str) -> None:
    LEDGER.mkdir(exist_ok=True)
    line = f"{what} {task_id} {os.getpid()} {time.time()}\n".encode()
    file = os.open(LEDGER / f"{os.getpid()}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, line)
    finally:
        os.close(file)


@celery.task(bind=True)
async def work(self: Any, seconds: float = 0.0) -> str:
    task_id: str = self.request.id
    note("start", task_id)
    await asyncio.sleep(seconds)
    note("end", task_id)
    return task_id


@celery.task(bind=True)
async def work_until(self: Any, path: str) -> str:
    """Work until somebody makes this file."""
    task_id: str = self.request.id
    note("start", task_id)
    while not Path(path).exists():  # noqa: ASYNC240 - nothing else runs here
        await asyncio.sleep(0.02)
    note("end", task_id)
    return task_id


@celery.task
async def count_until(path: str) -> AsyncIterator[int]:
    """Count until somebody makes this file, and ten further."""
    number, last = 0, sys.maxsize
    while number < last:
        yield number
        number += 1
        await asyncio.sleep(0.01)
        if last == sys.maxsize and Path(path).exists():  # noqa: ASYNC240 - nothing else runs here
            last = number + 10


@celery.task(bind=True)
def work_in_thread(self: Any, seconds: float = 0.0) -> str:
    task_id: str = self.request.id
    note("start", task_id)
    time.sleep(seconds)
    note("end", task_id)
    return task_id


@celery.task(bind=True)
async def block_loop(self: Any, seconds: float) -> str:
    task_id: str = self.request.id
    note("start", task_id)
    time.sleep(seconds)  # noqa: ASYNC251 - that is the point
    note("end", task_id)
    return task_id


@celery.task(bind=True)
async def kill_worker(self: Any) -> None:
    note("start", self.request.id)
    os.kill(os.getpid(), 9)


@celery.task
def add(x: int, y: int) -> int:
    return x + y


@celery.task(bind=True)
async def number(self: Any, value: int, seconds: float = 0.02) -> int:
    note("start", self.request.id)
    await asyncio.sleep(seconds)
    note("end", self.request.id)
    return value


@celery.task(bind=True)
async def total(self: Any, values: list[int], seconds: float = 0.02) -> int:
    note("start", self.request.id)
    await asyncio.sleep(seconds)
    note("end", self.request.id)
    return sum(values)


@celery.task(bind=True)
async def increase(self: Any, value: int) -> int:
    note("start", self.request.id)
    await asyncio.sleep(0.02)
    note("end", self.request.id)
    return value + 1


@celery.task
def fails() -> None:
    raise ValueError("as told")


@celery.task
async def errback(task_id: str) -> None:
    note("end", f"errback-of-{task_id}")
