"""An API over the ledger app's tasks."""

from __future__ import annotations

from fastapi import FastAPI
from ledger import celery, work

app = FastAPI(lifespan=celery.lifespan)
# An outage of a few seconds shall fall into a heartbeat of streams.
app.include_router(celery.router(insecure=True, heartbeat=0.3), prefix="/tasks")
celery.install(app)


@app.get("/ping")
async def ping() -> str:
    """Needs nothing but a loop that runs."""
    return "pong"


@app.post("/work", status_code=202)
async def post_work() -> dict[str, str]:
    """Enqueue a task."""
    handle = await work.enqueue()
    return {"task_id": handle.id}
