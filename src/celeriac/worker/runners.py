"""From delivery to execution: a task of the event loop for each, on a slot of the worker that it gives back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from celery.exceptions import TaskRevokedError
from celery.utils.log import get_logger

from celeriac.brokers.base import Delivery
from celeriac.worker.ending import HandedBack, LeaseLost
from celeriac.worker.execution import Execution
from celeriac.worker.executor import Executor
from celeriac.worker.fetcher import Slots
from celeriac.worker.held import Held
from celeriac.worker.intake import Intake
from celeriac.worker.leases import LeaseKeeper
from celeriac.worker.rates import RateLimit, Rates
from celeriac.worker.settler import Settler

__all__ = ["Runners"]

logger = get_logger(__name__)


class Runners:
    """Works on deliveries: through ``intake``, past their rate limits, to ``executor``.

    Args:
        tasks: The tasks of the loop that do it, while they do.
        intake: Says which deliveries are worked on.
        executor: Runs them.
        slots: One is taken for each delivery when it comes, and given back here.
        rates: Say when a task may start.
        held: What a cancellation or a lost lease finds.
        leases: Renewed from the start to the settlement.
        settler: Gives deliveries back that nobody settles.
        gives_back: Whether they would otherwise stay this worker's: there is no lease that ends.
    """

    def __init__(
        self,
        tasks: set[asyncio.Task[None]],
        intake: Intake,
        executor: Executor,
        *,
        slots: Slots,
        rates: Rates,
        held: Held,
        leases: LeaseKeeper,
        settler: Settler,
        gives_back: bool,
    ) -> None:
        self._tasks = tasks
        self._intake = intake
        self._executor = executor
        self._slots = slots
        self._rates = rates
        self._held = held
        self._leases = leases
        self._settler = settler
        self._gives_back = gives_back

    async def start(self, deliveries: Sequence[Delivery], asked_at: float) -> None:
        """Begin to work on what was received; a slot is taken for each."""
        for delivery in deliveries:
            self._leases.hold(delivery.tag, asked_at)
        try:
            admitted = await self._intake.admit(deliveries, self._hold)
        except Exception:
            logger.exception("%d deliveries could not be admitted", len(deliveries))
            for delivery in deliveries:
                self._let_go(delivery.tag)
                self._held.discard(delivery.tag)
            admitted = []
        for _ in range(len(deliveries) - len(admitted)):
            self._slots.release()
        for execution, revoked, done in admitted:
            runner = asyncio.create_task(self._execute(execution, revoked, done))
            execution.runner = runner
            self._tasks.add(runner)

    def _hold(self, execution: Execution) -> None:
        """From here on, a cancellation finds it."""
        execution.on_abandoned = self._abandon
        self._held.add(execution)

    async def _execute(self, execution: Execution, revoked: bool, done: bool) -> None:
        try:
            if self._rates.limits and not revoked and not done:
                limit = self._rates.limits.get(execution.name)
                revoked = limit is not None and await self._wait_for_rate(execution, limit)
            await self._executor.execute(execution, revoked=revoked, done=done)
        except asyncio.CancelledError:  # the loop is being closed: the lease ends, and another worker goes on
            self._leases.release(execution.delivery.tag)
            raise
        except BaseException as exc:
            logger.exception("Task %s[%s]: the worker failed", execution.name, execution.id)
            self._let_go(execution.delivery.tag)
            if not isinstance(exc, Exception):
                raise
        finally:
            self._held.discard(execution.delivery.tag)
            if execution.runner is not None:
                self._tasks.discard(execution.runner)
                execution.runner = None  # they refer to each other
            if execution.abandoned:
                pass  # its slot was given back when it was abandoned
            elif execution.concluding:
                self._slots.concluded()
            else:
                self._slots.release()

    def _let_go(self, tag: str) -> None:
        """Nobody settles this delivery: its lease ends, and the message is delivered again, up to its limit."""
        self._leases.release(tag)
        if self._gives_back:
            # No lease would end: it would be this worker's for as long as the connection lives.
            self._settler.give_back(tag)

    async def _wait_for_rate(self, execution: Execution, limit: RateLimit) -> bool:
        """Wait until the task may start; or, if its rate limit kept it waiting, whether it was revoked meanwhile."""
        if limit.take():
            return False
        try:
            await self._rates.wait(execution, limit)
        except TaskRevokedError:
            return True
        except (HandedBack, LeaseLost):
            return False  # the executor sees it
        return await self._intake.revoked_meanwhile(execution)

    def _ended(self, runner: asyncio.Task[None]) -> None:
        self._tasks.discard(runner)
        if not runner.cancelled():
            runner.exception()  # logged where it was raised

    def _abandon(self, execution: Execution) -> None:
        """A coroutine swallows every cancellation: conclude without it, and take another task in its place."""
        logger.critical(
            "Task %s[%s] cannot be stopped and is left to itself: it swallows asyncio.CancelledError.",
            execution.name,
            execution.id,
        )
        if execution.runner is not None:
            self._tasks.discard(execution.runner)  # a shutdown does not wait for it
        concluding = asyncio.create_task(self._executor.conclude_abandoned(execution))
        self._tasks.add(concluding)
        concluding.add_done_callback(self._ended)
        self._slots.release()
