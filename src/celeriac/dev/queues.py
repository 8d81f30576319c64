"""Which queues the worker reads: there is no other, so all that the tasks go to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

__all__ = ["queues_of", "read_all"]


def read_all(*, instance: Any, **_rest: Any) -> None:
    """A receiver of ``celeryd_init``: by then all tasks are known, and Celery has not chosen the queues."""
    instance.app.amqp.queues.select(queues_of(instance.app))


def queues_of(app: Any) -> list[str]:
    """The queues that a worker reads unless it is told, and those of the app's tasks and of its routes."""
    usual = list(app.amqp.queues.consume_from)
    return [*usual, *sorted(set(_destinations(app)) - set(usual))]


def _destinations(app: Any) -> Iterator[str]:
    for name, task in list(app.tasks.items()):
        own = getattr(task, "queue", None)
        with contextlib.suppress(Exception):  # a router may want the arguments of a call
            queue = app.amqp.router.route({} if own is None else {"queue": own}, name, (), {}, task).get(
                "queue"
            )
            if queue is not None:
                yield str(getattr(queue, "name", queue))
