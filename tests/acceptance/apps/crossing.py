"""One app with both kinds of task: what waits goes to the queue ``default``, what computes to ``cpu``."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from celery import current_task
from celery.exceptions import SoftTimeLimitExceeded

from celeriac import Celery

celery = Celery("crossing")
celery.conf.update(
    celeriac_lease=2.0,
    celeriac_delivery_limit=3,
    task_default_queue="default",
    task_routes={"cpu.*": {"queue": "cpu"}},
    worker_lost_wait=0.5,
)


@celery.task(name="io.add")
async def add(x: int, y: int) -> int:
    await asyncio.sleep(0.01)
    return x + y


@celery.task(name="io.total")
async def total(numbers: list[int]) -> int:
    return sum(numbers)


@celery.task(name="io.place")
async def place() -> tuple[int, str]:
    return os.getpid(), current_task.request.hostname


@celery.task(name="cpu.square")
def square(x: int) -> int:
    return sum(x for _ in range(x))


@celery.task(name="cpu.place")
def cpu_place() -> tuple[int, str]:
    return os.getpid(), current_task.request.hostname


@celery.task(name="cpu.coroutine_place")
async def coroutine_place() -> tuple[int, str]:
    await asyncio.sleep(0.01)
    return os.getpid(), current_task.request.hostname


@celery.task(name="cpu.patient", soft_time_limit=1)
async def patient(seconds: float, catches: bool) -> str:
    try:
        await asyncio.sleep(seconds)
    except SoftTimeLimitExceeded:
        if not catches:
            raise
        await asyncio.sleep(0.01)
    return "cleaned up"


class Noting(celery.Task):
    async def before_start(self, *_: object) -> None:
        await asyncio.sleep(0)
        self.request.noted = ["before_start"]

    async def on_success(self, result: list[str], task_id: str, *_: object) -> None:
        await asyncio.sleep(0)
        Path(f"{task_id}.noted").write_text(" ".join([*result, "on_success"]))  # noqa: ASYNC240 - a few bytes


@celery.task(name="cpu.noting", base=Noting, bind=True)
async def noting(self: Any) -> list[str]:
    return [*self.request.noted, "run"]


@celery.task(name="cpu.stuck", acks_on_timeout=True)
def stuck(seconds: float) -> None:
    """Inside a call into C, where no exception can be raised."""
    time.sleep(seconds)


@celery.task(name="cpu.killing", retry_on_worker_lost=True, max_retries=1, default_retry_delay=0)
def killing() -> None:
    os.kill(os.getpid(), 9)


@celery.task(name="cpu.killing_on")
def killing_on() -> None:
    os.kill(os.getpid(), 9)


@celery.task(name="io.stuck_thread")
def stuck_thread(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()
