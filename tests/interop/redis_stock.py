"""A plain Celery app on Redis, and a client of it: neither imports celeriac.

``python -m tests.interop.redis_stock`` evaluates the expressions that it reads, pickled, and writes what they give.
"""

from __future__ import annotations

import os
import pickle
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

from celery import Celery, chain, chord, chunks, group, signature
from celery.result import GroupResult
from tests.interop import redis_tasks

__all__ = ["app"]

app = Celery("stock")
app.conf.update(redis_tasks.settings())
redis_tasks.define(app)
app.finalize()


def _names() -> dict[str, Any]:
    return {
        **{name: task for name, task in app.tasks.items() if "." not in name},
        "app": app,
        "AsyncResult": app.AsyncResult,
        "GroupResult": GroupResult,
        "chain": chain,
        "chord": chord,
        "chunks": chunks,
        "datetime": datetime,
        "group": group,
        "signature": signature,
        "sys": sys,
        "timedelta": timedelta,
        "UTC": UTC,
    }


def _answer(expression: str, variables: dict[str, Any]) -> bytes:
    try:
        return pickle.dumps((True, eval(expression, _names() | variables)))
    except Exception as exc:  # noqa: BLE001 - it belongs to whoever asked
        try:
            return pickle.dumps((False, pickle.loads(pickle.dumps(exc))))
        except Exception:  # noqa: BLE001 - an exception that cannot be pickled
            return pickle.dumps((False, RuntimeError(f"{type(exc).__name__}: {exc}")))


def _serve() -> None:
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anything prints
    while True:
        try:
            expression, variables = pickle.load(questions)
        except EOFError:
            return
        answers.write(_answer(expression, variables))
        answers.flush()


if __name__ == "__main__":
    _serve()
