"""An endpoint that enqueues, and the same one without: one API of ours, on whatever ``CELERY_BROKER_URL`` names."""

from __future__ import annotations

import gc
import os

from fastapi import FastAPI

from benchmarks.apps.letters import Accepted, Counter, Letter
from celeriac import Celery

__all__ = ["app", "celery"]

celery = Celery("benchmark")
app = FastAPI(lifespan=celery.lifespan)
_accepted = Counter()

if threshold := os.environ.get("BENCHMARK_GC_THRESHOLD"):
    gc.set_threshold(int(threshold))

#: As long as an id.
_NO_TASK = "00000000-0000-7000-8000-000000000000"


@celery.task(name="send")
async def send(recipient: str, subject: str, body: str) -> None:
    """Nobody runs it: no worker is there while requests are counted."""


@app.post("/without", status_code=202)
async def without(letter: Letter) -> Accepted:
    """All but the enqueueing."""
    return Accepted(task_id=_NO_TASK)


@app.post("/with", status_code=202)
async def with_enqueue(letter: Letter) -> Accepted:
    """What an API does."""
    handle = await send.enqueue(letter.recipient, letter.subject, letter.body)
    _accepted.add()
    return Accepted(task_id=handle.id)


@app.get("/accepted")
async def accepted() -> int:
    """How many requests were answered with the id of a task."""
    return _accepted.total
