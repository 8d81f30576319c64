"""The Celery app. The broker is ``CELERY_BROKER_URL``, or the file ``celery.db`` in the current folder."""

from __future__ import annotations

from celery.schedules import crontab

from celeriac import Celery
from worker.settings import settings

__all__ = ["celery"]

celery = Celery("quickstart", include=["worker.tasks"])

celery.conf.beat_schedule = {
    "clean up the outbox every night": {
        "task": "worker.tasks.clean_up_outbox",
        "schedule": crontab(hour=3, minute=0),
    },
    "heartbeat": {
        "task": "worker.tasks.heartbeat",
        "schedule": settings.heartbeat_seconds,
        # A heartbeat that nobody could run in time says nothing any more.
        "options": {"expires": settings.heartbeat_seconds},
    },
}
