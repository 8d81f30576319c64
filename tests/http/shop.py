"""The app that the tests of this folder talk to: run by uvicorn, with a worker inside, on ``CELERY_BROKER_URL``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import date
from typing import Annotated, Any

from celery.utils import uuid
from fastapi import Depends, FastAPI, Header, HTTPException, UploadFile
from pydantic import BaseModel, Field

from celeriac import Celery
from celeriac.stores.records import Transition

celery = Celery("shop", set_as_current=False)
app = FastAPI(lifespan=celery.lifespan_with(worker=True))
celery.install(app)
router = celery.router(insecure=True, heartbeat=0.2)
_doors: dict[str, asyncio.Event] = {}


class Order(BaseModel):
    """What to report on."""

    customer: Annotated[str, Field(min_length=1, max_length=100)]
    since: date | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 10


class Report(BaseModel):
    """What a customer has ordered."""

    customer: str
    rows: int


@celery.task
async def add(x: int, y: int) -> int:
    return x + y


@celery.task
async def fail(message: str) -> None:
    raise ValueError(message)


@celery.task(bind=True, max_retries=3, default_retry_delay=3600)
async def fail_for_now(self: Any) -> None:
    raise self.retry(exc=ConnectionError("nobody there"))


@celery.task(bind=True)
async def wait(self: Any, door: str) -> str:
    """Run until somebody opens the door."""
    self.progress(1, 2, "waiting")
    await _doors.setdefault(door, asyncio.Event()).wait()
    return "opened"


@celery.task
async def speak(text: str) -> AsyncIterator[str]:
    for word in text.split():
        yield word


@celery.task
async def build_report(order: Order) -> Report:
    """Count what a customer has ordered."""
    return Report(customer=order.customer, rows=order.limit)


@celery.task
async def count_bytes(file: UploadFile, factor: Annotated[int, Field(ge=1, le=9)] = 1) -> int:
    """Count the bytes of a file."""
    return len(await file.read()) * factor


def _caller(x_user: Annotated[str | None, Header()] = None) -> str:
    if not x_user:
        raise HTTPException(401, "Who are you?")
    return x_user


router.expose(add, "/sums")
router.expose(build_report, "/reports")
router.expose(count_bytes, "/byte-counts")
app.include_router(router, prefix="/tasks")

# The same tasks: for their owners, and for everybody to look at.
mine = celery.router(owner=Depends(_caller), tags=["mine"])
mine.expose(add, "/sums", name="add_mine")
app.include_router(mine, prefix="/mine")
app.include_router(celery.router(include_traceback=True, tags=["looks"]), prefix="/looks")


@app.post("/enqueue/{name}", include_in_schema=False)
async def enqueue(name: str, args: list[Any], queue: str | None = None, countdown: float = 0) -> str:
    """Enqueue any task."""
    handle = await celery.enqueue(f"{__name__}.{name}", args, queue=queue, countdown=countdown)
    return handle.id


@app.post("/open/{door}", include_in_schema=False)
async def open_door(door: str) -> None:
    """Let tasks go on."""
    _doors.setdefault(door, asyncio.Event()).set()


@app.post("/expire", include_in_schema=False)
async def expire() -> str:
    """A task whose record has just been removed, because it ended two days ago."""
    task_id, then = uuid(), time.time() - 2 * 86_400
    await celery.store.transition([Transition(task_id=task_id, state="PENDING", at=then, name="old")])
    await celery.store.transition([Transition(task_id=task_id, state="SUCCESS", at=then, result="1")])
    while not await celery.store.gone([task_id]):
        await celery.store.trim()
    return task_id
