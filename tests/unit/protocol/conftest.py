"""A stock Celery application, and what it puts into its queue."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import celery
import pytest
from celery.utils.nodenames import anon_nodename
from kombu.transport import memory


def accept_anything(*args: Any, **kwargs: Any) -> None:
    """A task's function."""


class Stock:
    """A plain Celery app on kombu's memory transport; ``sent`` gives the raw messages of one call, first one first."""

    def __init__(self) -> None:
        self.queue = f"golden-{uuid.uuid4()}"
        self.app = celery.Celery(
            "golden", broker="memory://", backend="cache+memory://", set_as_current=False
        )
        self.app.conf.task_default_queue = self.queue
        self.task = self.app.task(accept_anything, name="golden.task", shared=False)
        self.origin = anon_nodename()

    def sent(self, publish: Callable[[], object]) -> list[dict[str, Any]]:
        publish()
        queue = memory.Channel.queues[self.queue]
        return [queue.get(block=False) for _ in range(queue.qsize())]


@pytest.fixture(scope="module")
def stock() -> Iterator[Stock]:
    stock = Stock()
    yield stock
    stock.app.close()
