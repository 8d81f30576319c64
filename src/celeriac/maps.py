"""``task.map``, ``task.starmap`` and ``task.chunks``: the tasks of Celery behind them, for coroutine functions, too.

https://docs.celeryq.dev/en/stable/userguide/canvas.html#map-starmap
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any

from celery import signature

__all__ = ["define_maps"]


def define_maps(sender: Any, **_signal: Any) -> None:
    """Replace ``celery.map`` and ``celery.starmap`` of an app that has just been finalized."""
    app = sender
    for name in ("celery.map", "celery.starmap"):
        app.tasks.pop(name, None)

    def xmap(task: Any, it: Any) -> Any:
        return _call_each(signature(task, app=app).type, [(item,) for item in it])

    def xstarmap(task: Any, it: Any) -> Any:
        return _call_each(signature(task, app=app).type, list(it))

    app.task(name="celery.map", lazy=False)(xmap)
    app.task(name="celery.starmap", lazy=False)(xstarmap)


def _call_each(task: Any, calls: Sequence[Iterable[Any]]) -> list[Any] | Awaitable[list[Any]]:
    """The results, or what waits for them: the worker lets a thread call ``def`` tasks, and its loop wait."""
    results = []
    for index, arguments in enumerate(calls):
        value = task(*arguments)
        if inspect.isawaitable(value):
            return _wait_for_each(task, value, calls[index + 1 :])
        results.append(value)
    return results


async def _wait_for_each(task: Any, first: Awaitable[Any], calls: Sequence[Iterable[Any]]) -> list[Any]:
    """One after the other: like ``def`` tasks, these may rely on that."""
    return [await first, *[await task(*arguments) for arguments in calls]]
