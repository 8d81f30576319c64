"""The workers' app."""

from __future__ import annotations

from travel_tasks import tasks

from celeriac import Celery

celery = Celery("travel")
celery.conf.update(
    celeriac_propagate=["travel_context:tenant"],
    worker_task_log_format="%(task_name)s for %(request_id)s: %(message)s",
)
celery.include_router(tasks)
