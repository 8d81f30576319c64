"""What a task may do to Celery's child processes (``-P processes``): kill some of them, but not one after the other.

``task_reject_on_worker_lost`` puts the message of a task back that has killed its child. Celery does so without end;
here the task fails after ``celeriac_delivery_limit`` children.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from celery.exceptions import WorkerLostError
from celery.worker.request import Request as CeleryRequest

__all__ = ["Request"]

#: Tasks whose dead children are remembered.
_REMEMBERED = 10_000

#: How many children each task has killed, in this worker's parent process.
_deaths: OrderedDict[str, int] = OrderedDict()


class Request(CeleryRequest):  # type: ignore[misc]
    """Celery's request, which counts the children that its task has killed."""

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """Celery's; a task that has killed too many children is not put back, and fails."""
        task = self.task
        if not (task.reject_on_worker_lost and _has_lost_its_child(exc_info.exception) and self._is_over()):
            return super().on_failure(exc_info, send_failed_event, return_ok)
        # Results are handled by one thread: nobody else sees the task like this.
        task.reject_on_worker_lost = False
        try:
            return super().on_failure(exc_info, send_failed_event, return_ok)
        finally:
            task.reject_on_worker_lost = True

    def _is_over(self) -> bool:
        """Count one more child. Whether that was the last one."""
        deaths = _deaths.pop(self.id, 0) + 1
        if deaths >= self.app.settings.delivery_limit:
            return True
        _deaths[self.id] = deaths
        if len(_deaths) > _REMEMBERED:
            _deaths.popitem(last=False)
        return False


def _has_lost_its_child(error: BaseException) -> bool:
    if isinstance(error, ExceptionWithTraceback):
        error = error.exc
    return isinstance(error, (WorkerLostError, SystemExit, KeyboardInterrupt))
