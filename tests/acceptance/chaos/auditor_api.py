"""An API over the auditor's tasks."""

from __future__ import annotations

from auditor import celery
from fastapi import FastAPI

app = FastAPI(lifespan=celery.lifespan)
app.include_router(celery.router(insecure=True), prefix="/tasks")
celery.install(app)
