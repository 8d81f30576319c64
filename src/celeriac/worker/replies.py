"""Answers of the worker to those who wait at queues of their own: what Celery's ``rpc://`` workers send.

What is said of a task arrives in order. An answer is with the broker before its task's message is acknowledged, so that
a crash between the two repeats it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from celery import states
from celery.utils.log import get_logger

from celeriac.brokers.base import Broker, Publication
from celeriac.coalesce import Coalescer
from celeriac.errors import BrokerUnavailable
from celeriac.protocol.codec import loads
from celeriac.stores.base import Store

if TYPE_CHECKING:
    from celeriac.worker.execution import Execution

__all__ = ["Replies"]

logger = get_logger(__name__)

#: Seconds between two attempts at a broker that is gone: first, and at most.
_BACKOFF = (0.05, 2.0)


class Replies:
    """Answers in batches. ``backend`` is the app's ``rpc://`` backend, which knows what a message looks like."""

    def __init__(self, backend: Any, broker: Broker, store: Store) -> None:
        self._backend = backend
        self._broker = broker
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._coalescer: Coalescer[Publication] = Coalescer(self._flush)

    async def answer(
        self, execution: Execution, state: str, result: str | None, traceback: str | None
    ) -> None:
        """Tell of the end of an attempt, with its result as JSON, and return when the broker has the answer."""
        value = None if result is None else loads(result)
        answer = self._backend.answer_of(execution.id, value, state, traceback, execution.request)
        if answer is not None:
            await self._coalescer.submit(answer)

    def announce(self, execution: Execution, state: str, value: Any) -> None:
        """Tell of a state that a running task is in, without waiting; from any thread."""
        answer = self._backend.answer_of(execution.id, value, state, None, execution.request)
        if answer is None:
            return
        if asyncio._get_running_loop() is self._loop:
            self._coalescer.add(answer)
        else:
            self._loop.call_soon_threadsafe(self._coalescer.add, answer)

    def announce_start(self, execution: Execution) -> None:
        """Tell that a task has started, and where."""
        self.announce(execution, states.STARTED, {"pid": os.getpid(), "hostname": execution.hostname})

    async def again(self, execution: Execution) -> None:
        """Answer a message whose task has ended before: who ended it may have died before it had answered."""
        record = (await self._store.get([execution.id])).get(execution.id)
        if record is None or not record.ready or execution.ignores_result:
            return
        answer = self._backend.answer_of(
            execution.id, record.result, record.state, record.traceback, execution.request
        )
        if answer is not None:
            await self._coalescer.submit(answer)

    async def send(self, answers: Sequence[Publication]) -> None:
        """Send answers that are made already."""
        await asyncio.gather(*(self._coalescer.submit(answer) for answer in answers))

    async def drain(self) -> None:
        """Wait for what is under way."""
        await self._coalescer.drain()

    async def _flush(self, answers: Sequence[Publication]) -> None:
        delay, longest = _BACKOFF
        while True:
            try:
                await self._broker.reply(answers)
                return
            except (BrokerUnavailable, TypeError) as exc:
                if len(answers) > 1 and getattr(exc, "permanent", True):
                    raise  # each alone
                if getattr(exc, "permanent", True):
                    logger.warning("The answer of task %s was not sent: %s", answers[0].task_id, exc)
                    return
                logger.error("The broker takes no answers, trying again in %.2f s: %s", delay, exc)
            await asyncio.sleep(delay)
            delay = min(delay * 2, longest)
