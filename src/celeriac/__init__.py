"""celeriac: Celery for FastAPI, asyncio all the way through."""

from celeriac.app import Celery
from celeriac.context import TaskContext
from celeriac.handle import TaskHandle
from celeriac.stores.records import Attempt, Progress, TaskEvent, TaskRecord
from celeriac.task import Task
from celeriac.task_router import TaskRouter

__all__ = [
    "Attempt",
    "Celery",
    "Progress",
    "Task",
    "TaskContext",
    "TaskEvent",
    "TaskHandle",
    "TaskRecord",
    "TaskRouter",
]
