"""Celery's ``autoretry_for`` for coroutines and dependencies: ``celery.app.autoretry`` cannot see what those raise.

https://docs.celeryq.dev/en/stable/userguide/tasks.html#automatic-retry-for-known-exceptions
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any

from celery.exceptions import Ignore, Retry
from celery.utils.time import get_exponential_backoff_interval

__all__ = ["retries", "retries_itself", "retrying"]


def retries_itself(task: Any) -> bool:
    """Whether ``autoretry_for`` is set: Celery has then wrapped the task's ``run``, and kept it as ``_orig_run``."""
    return hasattr(task, "_orig_run")


@contextmanager
def retries(task: Any) -> Iterator[None]:
    """Around a task's body: calls ``task.retry`` for what is to be retried. Raises what that raises."""
    try:
        yield
    except (Ignore, Retry):
        raise
    except tuple(getattr(task, "dont_autoretry_for", ())):
        raise
    except tuple(task.autoretry_for) as exc:
        raise task.retry(exc=exc, **_options(task)) from exc


async def retrying(task: Any, awaitable: Awaitable[Any]) -> Any:
    """Await a task's body, and call ``task.retry`` for what is to be retried. Raises what that raises."""
    with retries(task):
        return await awaitable


def _options(task: Any) -> dict[str, Any]:
    options = dict(getattr(task, "retry_kwargs", {}))
    backoff = float(getattr(task, "retry_backoff", False))
    if backoff:
        options["countdown"] = get_exponential_backoff_interval(
            factor=int(max(1.0, backoff)),
            retries=task.request.retries,
            maximum=int(getattr(task, "retry_backoff_max", 600)),
            full_jitter=getattr(task, "retry_jitter", True),
        )
    if hasattr(task, "override_max_retries"):
        options["max_retries"] = task.override_max_retries
    return options
