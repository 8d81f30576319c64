"""Celery's own testing helpers: ``celery.contrib.testing.worker.start_worker`` runs our worker in a thread."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from celery import chord
from celery.contrib.testing.worker import start_worker

from celeriac import Celery


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A worker sets up the logging of its process, which here is that of all tests."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    loggers = {
        name: logging.getLogger(name) for name in ("celery", "celery.task", "celery.redirected", "kombu")
    }
    former = {name: (each.level, each.handlers[:], each.propagate) for name, each in loggers.items()}
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
    for name, each in loggers.items():
        level, each.handlers[:], each.propagate = former[name]
        each.setLevel(level)


@pytest.mark.parametrize("pool", ["solo", "celeriac.worker.pool:TaskPool"])
def test_a_worker_in_a_thread(database_url: str, pool: str) -> None:
    app = Celery("contrib", broker=database_url, backend=database_url, set_as_current=False)
    app.loader.import_task_module("celery.contrib.testing.tasks")

    @app.task(name="double")
    async def double(x: int) -> int:
        return x * 2

    @app.task(name="total")
    def total(values: list[int]) -> int:
        return sum(values)

    with start_worker(app, pool=pool, perform_ping_check=False, shutdown_timeout=30):
        assert double.delay(21).get(timeout=10) == 42
        assert chord([double.s(1), double.s(2)])(total.s()).get(timeout=10) == 6
