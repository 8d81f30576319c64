"""The same endpoint with stock Celery's ``.delay()``: in a ``def``, which FastAPI runs in a thread, and on the loop."""

from __future__ import annotations

from fastapi import FastAPI

from benchmarks.apps.letters import Accepted, Counter, Letter
from benchmarks.apps.stock import celery

__all__ = ["app", "celery"]

app = FastAPI()
_accepted = Counter()

#: As long as an id.
_NO_TASK = "00000000-0000-7000-8000-000000000000"


@celery.task(name="send")  # type: ignore[untyped-decorator]
def send(recipient: str, subject: str, body: str) -> None:
    """Nobody runs it."""


@app.post("/without", status_code=202)
async def without(letter: Letter) -> Accepted:
    """All but the enqueueing."""
    return Accepted(task_id=_NO_TASK)


@app.post("/with-def", status_code=202)
def with_def(letter: Letter) -> Accepted:
    """In one of FastAPI's threads."""
    result = send.delay(letter.recipient, letter.subject, letter.body)
    _accepted.add()
    return Accepted(task_id=result.id)


@app.post("/with-async-def", status_code=202)
async def with_async_def(letter: Letter) -> Accepted:
    """On the loop, which everybody waits for meanwhile."""
    result = send.delay(letter.recipient, letter.subject, letter.body)
    _accepted.add()
    return Accepted(task_id=result.id)


@app.get("/accepted")
async def accepted() -> int:
    """How many requests were answered with the id of a task."""
    return _accepted.total
