"""Plain Celery, without results, and without anything else that costs time and is not asked for."""

from __future__ import annotations

from celery import Celery

__all__ = ["celery", "noop"]

celery = Celery("benchmark")
celery.conf.update(
    task_ignore_result=True,
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
)


@celery.task(name="noop")  # type: ignore[untyped-decorator]
def noop(number: int) -> int:
    """As little as a task can do."""
    return number
