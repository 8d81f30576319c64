"""An API over records that a test writes."""

from __future__ import annotations

from fastapi import FastAPI

from celeriac import Celery

celery = Celery("streams")
app = FastAPI(lifespan=celery.lifespan)
app.include_router(celery.router(heartbeat=0.5, slow_client=2.0), prefix="/tasks")
