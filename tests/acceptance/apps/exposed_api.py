"""An API of exposed tasks that write down when they run."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Annotated, Any

from celery.signals import before_task_publish
from fastapi import Depends, FastAPI, Header
from ledger import celery, note
from pydantic import BaseModel, Field


class Report(BaseModel):
    """What the task returns."""

    customer: str
    rows: Annotated[int, Field(ge=0)]


@celery.task(bind=True)
async def build_report(
    self: Any, customer: Annotated[str, Field(min_length=1)], rows: int = 3, seconds: float = 0.0
) -> Report:
    """Count the rows of a customer."""
    note("start", self.request.id)
    await asyncio.sleep(seconds)
    if rows < 0:
        raise ValueError("no such rows")
    note("end", self.request.id)
    return Report(customer=customer, rows=rows)


async def user(x_user: Annotated[str, Header()] = "ann") -> str:
    """Who calls."""
    return x_user


app = FastAPI(lifespan=celery.lifespan)
celery.install(app)
router = celery.router(owner=Depends(user))
router.expose(build_report, "/reports", deadline=2.0)
app.include_router(router, prefix="/tasks")

if os.environ.get("DIE_BEFORE_PUBLISH"):
    # The key is claimed, and the broker has nothing yet.
    @before_task_publish.connect(weak=False)
    def die(**_: Any) -> None:
        """As the OOM killer does it."""
        os.kill(os.getpid(), signal.SIGKILL)
