"""An API that enqueues what ``endurance.py`` has: so many tasks of all kinds in each request."""

from __future__ import annotations

import asyncio

import endurance
from endurance import celery
from fastapi import FastAPI

app = FastAPI(lifespan=celery.lifespan)
app.include_router(celery.router(insecure=True), prefix="/tasks")
celery.install(app)

#: Of a hundred tasks, how many are of each kind; the others succeed.
KINDS = [
    *[endurance.fail] * 5,
    *[endurance.retry_once] * 5,
    *[endurance.be_cancelled] * 3,
    *[endurance.succeed_in_thread] * 5,
]

#: Seconds for a result, with a cut of the connection in between.
PATIENCE = 60.0


@app.post("/mixture")
async def mixture(number: int) -> dict[str, int | str]:
    """Enqueue so many tasks, cancel some, and wait for a few. Gives how many are to run, and one to follow."""
    signatures = []
    for each in range(number):
        place = each % 100
        task = KINDS[place] if place < len(KINDS) else endurance.succeed
        options = {"countdown": 0.3} if task is endurance.be_cancelled else {}
        signatures.append(task.s(each).set(**options))
    handles = await celery.enqueue_many(signatures)
    kinds = [signature.task for signature in signatures]
    cancelled = [
        handle for handle, kind in zip(handles, kinds, strict=True) if kind == endurance.be_cancelled.name
    ]
    followed = await endurance.emit.enqueue(5)
    await asyncio.gather(*(handle.cancel() for handle in cancelled))
    waited = [
        (place, handle) for place, handle in enumerate(handles) if kinds[place] == endurance.succeed.name
    ]
    results = await asyncio.gather(*(handle.result(PATIENCE) for _, handle in waited[-10:]))
    assert results == [place for place, _ in waited[-10:]]
    return {"cancelled": len(cancelled), "followed": followed.id}


@app.get("/waiting")
async def waiting() -> int:
    """How many messages wait."""
    return await celery.queue_size("celery")


@app.get("/counts")
async def counts() -> dict[str, int]:
    """What the worker has started."""
    return await (await endurance.counts.enqueue()).result(PATIENCE)
