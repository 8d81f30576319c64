"""Runs one delivery through named steps, from check to settlement.

``protocol.settlement`` alone decides what becomes of the message; the order of the last steps is what keeps tasks
safe: successors, then result, then settlement. A crash between two of them repeats the attempt, and loses nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container
from functools import partial
from typing import Any

from celery import states
from celery.canvas import Signature
from celery.exceptions import Retry, WorkerLostError
from celery.utils.log import get_logger
from kombu.exceptions import EncodeError

from celeriac.brokers.base import Settlement
from celeriac.calls import Call, CallBuilder, NotNative
from celeriac.compat import enter_execution, pop_task, push_task
from celeriac.files import kept
from celeriac.protocol.codec import dumps
from celeriac.protocol.settlement import Action, Outcome, decide
from celeriac.publisher import signal_after, signal_before
from celeriac.worker.announce import perform
from celeriac.worker.coroutines import wait_interruptibly
from celeriac.worker.ending import Ending, HandedBack, LeaseLost, ending_of
from celeriac.worker.execution import Execution
from celeriac.worker.invoke import invoke, invoke_with_files
from celeriac.worker.leases import LeaseKeeper
from celeriac.worker.lifecycle import internal_error
from celeriac.worker.profile import Kind, TaskProfile
from celeriac.worker.refusal import refusal_of
from celeriac.worker.replies import Replies
from celeriac.worker.reporter import Perform, Reporter
from celeriac.worker.settler import Settler
from celeriac.worker.successors import Successors
from celeriac.worker.threads import TaskThread, TaskThreads
from celeriac.worker.uploads import files_of, keeps_files

__all__ = ["Executor"]

logger = get_logger(__name__)


class Executor:
    """Executes deliveries. ``on_ended`` is called when a task's function has ended, and the rest is to be concluded."""

    def __init__(
        self,
        *,
        make_profile: Callable[[Any], TaskProfile],
        calls: CallBuilder,
        successors: Successors,
        leases: LeaseKeeper,
        settler: Settler,
        reporter: Reporter,
        threads: TaskThreads,
        on_ended: Callable[[Execution], None],
        delivery_limit: int,
        unknown_task_grace: float,
        stubs: Container[str] = (),
        replies: Replies | None = None,
    ) -> None:
        self._make_profile = make_profile
        self._profiles: dict[str, TaskProfile] = {}
        self._calls = calls
        self._successors = successors
        self._leases = leases
        self._settler = settler
        self._reporter = reporter
        self._threads = threads
        self._on_ended = on_ended
        self._delivery_limit = delivery_limit
        self._unknown_task_grace = unknown_task_grace
        self._stubs = stubs
        self._replies = replies

    async def execute(self, execution: Execution, *, revoked: bool, done: bool) -> None:
        """Run an attempt to its settlement.

        ``revoked`` says that it was cancelled, ``done`` that an earlier delivery of the same message has ended it.
        """
        self._enter(execution)
        execution.successors = self._successors
        if execution.message.reply_to:
            execution.replies = self._replies
        if done:
            await self._repeat_end(execution)
            return
        profile: TaskProfile | None = None
        ending = refusal_of(
            execution, revoked=revoked, delivery_limit=self._delivery_limit, stubs=self._stubs
        )
        if ending is None:
            profile = self._profile_of(execution.task)
            ending = await self._run(execution, profile)
            if ending is None:
                return
        elif not await self._is_ours(execution):
            self._reporter.ended(execution, ending_of(LeaseLost()))
            return
        else:
            await self._record(execution, ending)
            if ending.state is not None:
                await self._successors.after_failure(execution, ending)
        if execution.planned:  # by handlers, errbacks, receivers
            await self._finish_late_plans(execution)
        if profile is not None and profile.files is None:
            await self._settle(execution, ending)
        else:
            await self._settle_with_files(execution, ending)
        for call in ending.retries:
            signal_after(call)
        self._reporter.ended(execution, ending)

    def _enter(self, execution: Execution) -> None:
        """From here on this context, and what is started from it, is the execution's."""
        enter_execution(execution)
        self._calls.propagation.restore(execution.message.headers)

    async def _is_ours(self, execution: Execution) -> bool:
        """Whether nobody else has the message by now, who may be running what is refused here."""
        if self._leases.may_be_over(execution.delivery.tag):
            try:
                await self._leases.confirm(execution.delivery.tag)
            except LeaseLost:
                return False
        return True

    async def _repeat_end(self, execution: Execution) -> None:
        """Settle what has ended before; the worker that ended it may have died before it told what follows."""
        if execution.replies is not None:
            await execution.replies.again(execution)
        await self._successors.again(execution)
        if execution.planned:  # by errbacks
            await self._finish_late_plans(execution)
        exhausted = execution.delivery.deliveries > self._delivery_limit
        outcome = Outcome.EXHAUSTED if exhausted else Outcome.SUCCEEDED
        await self._settle_with_files(execution, Ending(outcome, None, reason="its record has ended"))

    async def _run(self, execution: Execution, profile: TaskProfile) -> Ending | None:
        """Call the function, and conclude; ``None`` when the message is somebody else's by now."""
        push_task(execution, execution.task)
        execution.task.request_stack.push(execution)
        followed = self._reporter.is_followed(profile)
        # A ``def`` task's thread is kept to the end where more than the function is called in it.
        thread = (
            TaskThread(self._threads, execution, kept=followed) if profile.kind is Kind.FUNCTION else None
        )
        performer = _performer(thread) if followed else None
        try:
            ending = await self._attempt(execution, profile, thread, performer)
            if execution.abandoned:
                return None
            if execution.planned:
                await self._finish_plans(execution, ending)
            self._on_ended(execution)
            if ending.outcome is Outcome.WORKER_LOST:
                # Another worker has the message: what this attempt found out is not the task's result.
                await self._reporter.concluded(execution, profile, ending, performer)
                self._reporter.ended(execution, ending)
                return None
            await self._conclude(execution, profile, ending, performer)
            return ending
        except Exception as exc:
            internal_error(execution, exc)
            raise
        finally:
            if thread is not None:
                thread.release()
            execution.task.request_stack.pop()
            pop_task(execution)

    @staticmethod
    async def _finish_plans(execution: Execution, ending: Ending) -> None:
        """Wait for what the function has published: a task whose calls were refused has failed."""
        try:
            await execution.finish_plans()
        except Exception as exc:
            if ending.failed:
                logger.exception("Task %s[%s]: a call it made was refused", execution.name, execution.id)
            else:
                ending.become(ending_of(exc))

    @staticmethod
    async def _finish_late_plans(execution: Execution) -> None:
        """Wait for what was published after the end was recorded, which changes nothing of it."""
        try:
            await execution.finish_plans()
        except Exception:
            logger.exception("Task %s[%s]: a call made after it was refused", execution.name, execution.id)

    def refresh(self, profile: TaskProfile) -> None:
        """A task's settings have changed."""
        self._profiles[profile.task.name] = profile

    async def conclude_abandoned(self, execution: Execution) -> None:
        """End an attempt whose function cannot be stopped, and goes on; what it still does is nobody's."""
        self._enter(execution)
        ending = ending_of(execution.stop or WorkerLostError("abandoned"))
        await self._record(execution, ending)
        await self._successors.after_failure(execution, ending)
        await self._settle_with_files(execution, ending)
        self._reporter.ended(execution, ending)

    def _profile_of(self, task: Any) -> TaskProfile:
        profile = self._profiles.get(task.name)
        if profile is None:  # registered after the worker had started
            profile = self._profiles[task.name] = self._make_profile(task)
        return profile

    async def _attempt(
        self, execution: Execution, profile: TaskProfile, thread: TaskThread | None, performer: Perform | None
    ) -> Ending:
        """Start, and call the function."""
        try:
            if execution.stop is not None:
                raise execution.stop
            if thread is not None:
                await thread.take()
            if self._leases.may_be_over(execution.delivery.tag):
                await wait_interruptibly(execution, partial(self._leases.confirm, execution.delivery.tag))
            if not profile.acks.acks_late:
                # Before the start, as the setting promises: a crash from here on loses the task, and never runs it
                # twice.
                await self._acknowledge(execution)
            execution.begin()
            await self._reporter.starting(execution, profile, performer)
            call = invoke if profile.files is None else invoke_with_files
            value = await call(execution, profile, thread)
            return Ending(Outcome.SUCCEEDED, states.SUCCESS, value=value)
        except BaseException as exc:  # noqa: BLE001 - every way to end is told apart by ending_of
            # Not kept in a variable: this frame belongs to the exception, whose locals would live until a collection.
            return ending_of(_told_apart(execution, exc))
        finally:
            execution.ended = True

    async def _conclude(
        self, execution: Execution, profile: TaskProfile, ending: Ending, performer: Perform | None
    ) -> None:
        """Publish what follows, and store the result."""
        try:
            if ending.succeeded:
                ending.result = self._encode(execution, profile, ending.value)
                await self._successors.before_result(execution, ending)
            if execution.held_retries and execution.stop is None:
                # A function that was stopped is tried again by others, or not at all.
                ending.retries = await self._prepare_retries(execution)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is how the task ended
            ending.become(ending_of(exc))
        if (
            ending.failed
            and not execution.acknowledged
            and decide(ending.outcome, profile.acks) is Action.REQUEUE
        ):
            # It is delivered again: a record that said FAILURE would end the task there.
            ending.state = states.RETRY
        await self._record(execution, ending)
        if ending.succeeded:
            await self._successors.after_result(execution, ending)
        elif ending.state in (states.FAILURE, states.REVOKED):
            await self._successors.after_failure(execution, ending)
        await self._reporter.concluded(execution, profile, ending, performer)

    async def _prepare_retries(self, execution: Execution) -> tuple[Call, ...]:
        """The calls of the next attempts, to be published with the settlement of this one."""
        calls = []
        for signature in execution.held_retries:
            try:
                call = self._calls.build_retry(signature)
            except NotNative:
                await asyncio.to_thread(Signature.apply_async, signature)
                continue
            except (TypeError, EncodeError):
                # ``self.retry(args=…)`` may bring what ``enqueue`` takes, and the serializer does not.
                schema = execution.task.schema
                args, kwargs = schema.dump(signature.args, signature.kwargs)
                if schema.takes_files:
                    args, kwargs = schema.map_files(args, kwargs, lambda _, value: kept(value))
                signature.args, signature.kwargs = args, kwargs
                call = self._calls.build_retry(signature)
            signal_before(call)
            calls.append(call)
        return tuple(calls)

    @staticmethod
    def _encode(execution: Execution, profile: TaskProfile, value: Any) -> str | None:
        if execution.ignores_result or not (execution.records.recording or execution.replies):
            return None
        return dumps(value if profile.schema is None else profile.schema.dump_result(value))

    async def _record(self, execution: Execution, ending: Ending) -> None:
        if ending.state is None:
            return
        ignored = execution.ignores_result and not (ending.error and execution.stores_errors)
        if execution.records.recording and not execution.forgotten:
            await execution.records.write(
                execution.transition(
                    ending.state,
                    result=None if ignored else ending.result,
                    traceback=None if ignored else ending.traceback,
                    children=execution.children,
                )
            )
        if execution.replies is not None and not ignored:
            # Whoever hears of it may look at the record.
            # Celery sends a plain ``self.retry()`` without a reason.
            plain = isinstance(ending.error, Retry) and ending.error.exc is None
            result = None if plain else ending.result
            await execution.replies.answer(execution, ending.state, result, ending.traceback)

    async def _acknowledge(self, execution: Execution) -> None:
        await self._settler.settle(Settlement(execution.delivery.tag, Action.ACKNOWLEDGE))
        execution.acknowledged = True

    async def _settle_with_files(self, execution: Execution, ending: Ending) -> None:
        """Settle, and delete the task's files if that was its last attempt; not sooner: a crash repeats it."""
        files = files_of(execution)
        action = await self._settle(execution, ending, confirmed=bool(files))
        if files and not keeps_files(execution, ending, action):
            await execution.task.app.uploads.discard(execution.id, files)

    async def _settle(self, execution: Execution, ending: Ending, *, confirmed: bool = False) -> Action:
        """End the delivery, and return how; with ``confirmed`` when the broker has taken it."""
        profile = self._profiles.get(execution.name)
        if execution.acknowledged:
            if ending.retries:
                await self._settler.publish([call.publication for call in ending.retries])
            return Action.ACKNOWLEDGE
        action = decide(ending.outcome, profile.acks if profile else None)
        if action is Action.ACKNOWLEDGE and not ending.retries and not confirmed:
            await self._settler.acknowledge(execution.delivery.tag)
            return action
        due = None
        if ending.outcome is Outcome.UNKNOWN_TASK:
            due = execution.records.now() + self._parking_time(execution.delivery.deliveries)
        await self._settler.settle(
            Settlement(
                execution.delivery.tag,
                action,
                due=due,
                counted=ending.outcome is not Outcome.HANDED_BACK,
                reason=ending.reason,
                publications=tuple(call.publication for call in ending.retries),
            )
        )
        return action

    def _parking_time(self, deliveries: int) -> float:
        """Seconds until a message of an unknown task is offered again: doubling, and the grace period in all."""
        rounds = max(1, self._delivery_limit - 1)
        share: float = self._unknown_task_grace / (2**rounds - 1)
        return share * 2.0 ** (min(deliveries, rounds) - 1)


def _performer(thread: TaskThread | None) -> Perform:
    """Where receivers and handlers are called: where the function is."""
    return perform if thread is None else thread.perform


def _told_apart(execution: Execution, error: BaseException) -> BaseException:
    """What ended the attempt: by what is still possible, and as the function raised it."""
    if isinstance(error, HandedBack) and execution.acknowledged:
        error = WorkerLostError("The worker shut down, and the task was acknowledged before it ran.")
    cause = error.__cause__
    if isinstance(error, RuntimeError) and isinstance(cause, StopIteration):
        return cause  # no coroutine may raise it, and the worker's own is around the function
    return error
