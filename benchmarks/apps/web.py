"""An API that has nothing to do."""

from __future__ import annotations

from fastapi import FastAPI

from benchmarks.apps.embedded import celery

__all__ = ["app"]

app = FastAPI(lifespan=celery.lifespan)
app.include_router(celery.router(), prefix="/tasks")


@app.get("/")
async def root() -> dict[str, str]:
    """Answers."""
    return {"status": "ok"}
