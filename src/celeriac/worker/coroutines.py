"""Run a coroutine under its time limits, and stop it at an ``await`` when it has to be."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from celeriac.steering import Steered
from celeriac.worker.ending import HandedBack
from celeriac.worker.execution import Execution
from celeriac.worker.log import log_soft_limit

__all__ = ["Interruptible", "Limits", "bound", "limited", "run_coroutine", "runner_of", "wait_interruptibly"]

#: Seconds that a cancelled coroutine has for its clean-up, before it is cancelled again.
_PATIENCE = 10.0

#: How often a coroutine is cancelled before the worker no longer waits for it.
_ATTEMPTS = 3

Limits = tuple[float | None, float | None]


@contextlib.contextmanager
def limited(
    execution: Execution,
    limits: Limits,
    on_soft: Callable[[float], None] = lambda _limit: None,
    spent: float = 0.0,
) -> Iterator[None]:
    """Start the hard and the soft limit, in seconds, and forget them afterwards.

    ``spent`` seconds of both are over; a soft limit that is over has been raised.
    """
    hard, soft = limits
    loop = asyncio.get_running_loop()
    timers = []
    if soft is not None and (soft > spent or not spent):
        timers.append(loop.call_later(soft - spent, on_soft, soft))
    if hard is not None:
        left = max(0.0, hard - spent)
        timers.append(loop.call_later(left, lambda: execution.halt(TimeLimitExceeded(hard))))
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


class Interruptible:
    """Around a wait on behalf of a task: ``execution.halt`` calls ``interrupt``, and ``execution.stop`` is raised.

    It is raised whatever comes out of the body, and nothing is left of the cancellations that were meant for the body.
    """

    __slots__ = ("_execution", "_interrupt")

    def __init__(self, execution: Execution, interrupt: Callable[[BaseException], object]) -> None:
        self._execution = execution
        self._interrupt = interrupt

    async def __aenter__(self) -> None:
        self._execution.interrupt = self._interrupt

    async def __aexit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        execution = self._execution
        if error is not None:
            await _end_in_error(execution, error)
            return
        execution.interrupt = None
        if (runner := execution.runner) is not None and runner.cancelling():
            await absorb_cancellation(runner)


async def _end_in_error(execution: Execution, error: BaseException) -> None:
    execution.interrupt = None
    await absorb_cancellation(runner_of(execution))
    if execution.stop is not None and execution.stop is not error:
        raise execution.stop from error


def runner_of(execution: Execution) -> asyncio.Task[Any]:
    """The asyncio task that the execution runs in."""
    runner = execution.runner
    assert runner is not None
    return runner


async def run_coroutine(
    execution: Execution, awaitable: Awaitable[Any], limits: Limits, spent: float = 0.0
) -> Any:
    """Await to the end. Raises ``execution.stop`` if it was set meanwhile, whatever the coroutine made of it."""
    runner = runner_of(execution)
    # Interruptible, written out: every task comes through here.
    execution.interrupt = partial(_cancel, execution, runner, 1)
    try:
        if limits == (None, None):
            value = await awaitable
        else:
            value = await _run_limited(execution, awaitable, runner, limits, spent)
    except BaseException as exc:
        await _end_in_error(execution, exc)
        raise
    execution.interrupt = None
    if runner.cancelling():
        await absorb_cancellation(runner)
    if execution.stop is not None and not isinstance(execution.stop, HandedBack):
        raise execution.stop
    return value


async def wait_interruptibly(execution: Execution, wait: Callable[[], Awaitable[Any]]) -> None:
    """Wait for something of the worker's own on behalf of a task. Raises ``execution.stop`` if that comes first."""
    if execution.stop is not None:
        raise execution.stop
    runner = runner_of(execution)
    async with Interruptible(execution, lambda _reason: runner.cancel()):
        await wait()


async def absorb_cancellation(runner: asyncio.Task[Any]) -> None:
    """Swallow cancellations that were meant for the task's function: they must not hit the worker's own steps."""
    while runner.cancelling():
        runner.uncancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)


def bound(execution: Execution) -> None:
    """What is awaited next on behalf of a task that was stopped is cancelled, too, if it takes too long."""
    reason = execution.stop
    if reason is not None:
        loop = asyncio.get_running_loop()
        loop.call_later(_PATIENCE, _cancel, execution, runner_of(execution), 2, reason)


def _cancel(execution: Execution, runner: asyncio.Task[None], attempt: int, reason: BaseException) -> None:
    if execution.interrupt is None:
        return
    if attempt > _ATTEMPTS:
        execution.abandon()
        return
    runner.cancel()
    asyncio.get_running_loop().call_later(_PATIENCE, _cancel, execution, runner, attempt + 1, reason)


async def _run_limited(
    execution: Execution,
    awaitable: Awaitable[Any],
    runner: asyncio.Task[None],
    limits: Limits,
    spent: float,
) -> Any:
    steered = Steered(awaitable, runner) if limits[1] is not None and inspect.iscoroutine(awaitable) else None

    def on_soft(limit: float) -> None:
        if steered is not None:
            log_soft_limit(execution, limit)
            steered.throw_in(SoftTimeLimitExceeded())

    with limited(execution, limits, on_soft, spent):
        return await (steered or awaitable)
