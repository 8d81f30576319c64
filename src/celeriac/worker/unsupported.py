"""What may be asked of a worker of Celery's and has no meaning for one without child processes: a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from celery.app.defaults import DEFAULTS
from celery.app.task import Task as CeleryTask

from celeriac.task import Task
from celeriac.worker.autoscale import Autoscaler

__all__ = ["unsupported"]

_USE_PROCESSES = "Use -P processes."
_OWN_PROCESS = f"this worker runs tasks in its own process, which goes on. {_USE_PROCESSES}"
_NO_CHILDREN = "this worker has no child processes."
_OWN_ENGINE = "a database is opened in the one way that is safe between processes."


def _is_set(name: str) -> Callable[[Any], bool]:
    return lambda worker: bool(worker.app.conf[name])


def _differs(name: str, default: Any = None) -> Callable[[Any], bool]:
    usual = DEFAULTS[name] if default is None else default
    return lambda worker: bool(worker.app.conf[name] != usual)


#: Setting, whether a worker was asked for it, and why it has no effect.
_TABLE: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("worker_max_tasks_per_child", lambda worker: bool(worker.max_tasks_per_child), _OWN_PROCESS),
    ("worker_max_memory_per_child", lambda worker: bool(worker.max_memory_per_child), _OWN_PROCESS),
    ("worker_agent", _is_set("worker_agent"), f"this worker starts no agent. {_USE_PROCESSES}"),
    (
        "worker_prefetch_multiplier",
        lambda worker: worker.prefetch_multiplier != 1,
        "this worker receives no more messages than it has free slots (-c).",
    ),
    (
        "worker_pool_restarts",
        _is_set("worker_pool_restarts"),
        "this worker has no child processes that would load changed code. Restart the worker.",
    ),
    ("worker_pool_start_method", _differs("worker_pool_start_method"), _NO_CHILDREN),
    ("worker_pool_putlocks", _differs("worker_pool_putlocks"), _NO_CHILDREN),
    (
        "worker_lost_wait",
        lambda worker: worker.worker_lost_wait != DEFAULTS["worker_lost_wait"],
        _NO_CHILDREN,
    ),
    ("worker_proc_alive_timeout", _differs("worker_proc_alive_timeout"), _NO_CHILDREN),
    (
        "worker_cancel_long_running_tasks_on_connection_loss",
        lambda worker: not worker.app.conf.worker_cancel_long_running_tasks_on_connection_loss,
        "this worker stops a task when its lease has ended, because another worker has it then (celeriac_lease).",
    ),
    (
        "worker_enable_soft_shutdown_on_idle",
        _is_set("worker_enable_soft_shutdown_on_idle"),
        "this worker keeps no task in its memory that does not run.",
    ),
    ("worker_timer", _is_set("worker_timer"), "delayed tasks of this worker wait in the broker."),
    (
        "result_failure_expires",
        lambda worker: worker.app.conf.result_failure_expires is not None,
        "all records are kept equally long. Use result_expires.",
    ),
    ("database_engine_options", _differs("database_engine_options"), _OWN_ENGINE),
    ("database_engine_callback", _is_set("database_engine_callback"), _OWN_ENGINE),
    ("database_short_lived_sessions", _is_set("database_short_lived_sessions"), _OWN_ENGINE),
    (
        "worker_autoscaler",
        lambda worker: (
            getattr(worker, "autoscaler", None) is not None and not isinstance(worker.autoscaler, Autoscaler)
        ),
        f"it counts requests of Celery's pools. {_USE_PROCESSES}",
    ),
)


def unsupported(worker: Any) -> list[str]:
    """What was asked of a worker of ours that it cannot do, and what to do instead; docs/celery-compatibility.md has
    the whole list.
    """
    return [
        *(f"{setting} has no effect: {why}" for setting, asked, why in _TABLE if asked(worker)),
        *_consumer_steps(worker),
        *_custom_requests(worker),
    ]


def _consumer_steps(worker: Any) -> Iterator[str]:
    if steps := worker.app.steps["consumer"]:
        names = ", ".join(sorted(getattr(step, "__name__", str(step)) for step in steps))
        yield (
            f"Bootsteps of the consumer are not started: {names}. This worker's consumer is no kombu consumer. "
            'Make them steps of the worker (app.steps["worker"]), or use -P processes.'
        )


def _custom_requests(worker: Any) -> Iterator[str]:
    own = (CeleryTask.Request, Task.Request)
    names = sorted(task.name for task in worker.app.tasks.values() if task.Request not in own)
    if names:
        yield (
            f"Request classes of tasks have no effect: {', '.join(names)}. This worker makes no such requests. "
            "Use handlers of the task (on_failure, …) or signals."
        )
