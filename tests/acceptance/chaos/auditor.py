"""An app whose tasks write down each start and each end.

One file per process, opened to append; each line is one ``write``, followed by ``fsync``: what was written survives the
writer and the machine. A line is ``what task-id attempt pid monotonic wall``.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from celeriac import Celery

celery = Celery("auditor")
celery.conf.update(json.loads(os.environ.get("AUDIT_CONF", "{}")))

LOG = Path(os.environ.get("AUDIT_LOG", "log"))

_files: dict[int, int] = {}


def note(what: str, task_id: str, attempt: int = 0) -> None:
    """Append a line, and return when the disk has it."""
    pid = os.getpid()
    if pid not in _files:  # after a fork, too
        LOG.mkdir(exist_ok=True)
        _files[pid] = os.open(LOG / f"{pid}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    line = f"{what} {task_id} {attempt} {pid} {time.monotonic():.6f} {time.time():.6f}\n"
    os.write(_files[pid], line.encode())
    os.fsync(_files[pid])


def _note(what: str, task: Any) -> None:
    note(what, task.request.id, task.request.retries)


@celery.task(bind=True)
async def work(self: Any, seconds: float = 0.0) -> str:
    """Take so long."""
    _note("start", self)
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        _note("stop", self)
        raise
    _note("end", self)
    return str(self.request.id)


@celery.task(bind=True)
async def hold(self: Any, door: str) -> str:
    """Go on until there is a file of this name."""
    _note("start", self)
    while not Path(door).exists():  # noqa: ASYNC240 - nothing else matters here
        await asyncio.sleep(0.1)
    _note("end", self)
    return str(self.request.id)


@celery.task(bind=True)
def work_in_thread(self: Any, seconds: float = 0.0) -> str:
    """Take so long, in a thread."""
    _note("start", self)
    time.sleep(seconds)
    _note("end", self)
    return str(self.request.id)


@celery.task(bind=True, max_retries=None)
async def work_again(self: Any, seconds: float = 0.0, times: int = 1, countdown: float = 0.0) -> str:
    """Take so long, and ask for another attempt, so many times."""
    _note("start", self)
    await asyncio.sleep(seconds)
    if self.request.retries < times:
        _note("retry", self)
        raise self.retry(countdown=countdown)
    _note("end", self)
    return str(self.request.id)


@celery.task(bind=True)
async def poison(self: Any, cure: str = "") -> str:
    """Kill the worker, unless there is a file of this name."""
    _note("start", self)
    if not (cure and Path(cure).exists()):  # noqa: ASYNC240 - nothing else matters here
        os.kill(os.getpid(), signal.SIGKILL)
    _note("end", self)
    return str(self.request.id)
