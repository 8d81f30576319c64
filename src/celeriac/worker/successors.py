"""What follows a task: callbacks, the rest of its chain, its chord, its errbacks.

Celery's own code decides what that is; it runs in a plan (:mod:`celeriac.planning`), on the loop, in the execution's
context, so that the successors know their parent and root. A broker or store that is away is waited for: the task has
run, and its successors must not be lost.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from celery import states
from celery.canvas import group, maybe_signature
from celery.exceptions import ChordError
from celery.utils.log import get_logger
from kombu.exceptions import OperationalError

from celeriac.calls import CallBuilder
from celeriac.canvas import is_large
from celeriac.compat import chain_ids, fail_successors
from celeriac.errors import BrokerError, StoreUnavailable
from celeriac.planning import Errback, Part, Plan, collecting, prepare, publish
from celeriac.protocol.codec import dumps, loads
from celeriac.publisher import Publisher
from celeriac.stores.base import Store
from celeriac.stores.chords import ChordClaim, ChordPart
from celeriac.task import Task
from celeriac.worker.chords import call_body, gather
from celeriac.worker.ending import Ending
from celeriac.worker.execution import Execution
from celeriac.worker.replies import Replies

__all__ = ["Successors"]

logger = get_logger(__name__)

T = TypeVar("T")

#: Seconds between two attempts: first, and at most.
_BACKOFF = (0.1, 5.0)


class Successors:
    """Plans and carries out what follows the tasks of one worker."""

    def __init__(
        self,
        app: Any,
        calls: CallBuilder,
        publisher: Publisher,
        store: Store,
        replies: Replies | None = None,
    ) -> None:
        self._app = app
        self._calls = calls
        self._publisher = publisher
        self._store = store
        self._replies = replies

    def plan(self) -> Plan:
        """A plan for what a running task does itself."""
        return Plan(self._app, self._calls)

    async def before_result(self, execution: Execution, ending: Ending) -> None:
        """Publish callbacks and the next step of the chain; in Celery's tracer, too, before the result is stored.

        Raises what publishing raises, but for an outage: a task whose successors cannot be published has not succeeded.
        """
        message = execution.message
        if message.callbacks or message.chain:
            value = _travelling(execution, ending)
            following = [*(message.callbacks or ()), *(message.chain or ())[-1:]]
            await self.carry_out(await self._lay_out(following, _call_successors, execution, value))

    async def after_result(self, execution: Execution, ending: Ending) -> None:
        """Tell the chord that one of its parts is done, now that its result can be read."""
        if execution.message.chord:
            await self._bring(execution, ending.result or dumps(_travelling(execution, ending)))

    async def after_failure(self, execution: Execution, ending: Ending) -> None:
        """Call errbacks, and let chord and chain know that this part will not come.

        The order is that of ``Backend.mark_as_failure``. Celery tells a revoked task's chord alone.
        """
        message = execution.message
        if not (message.chord or message.chain or message.errbacks):
            return
        backend = self._backend_of(execution)
        if ending.state == states.REVOKED:
            if message.chord:
                await self._tell(execution, backend.on_chord_part_return, ending.state, ending.error)
        elif ending.error is not None:
            await self._tell(execution, partial(fail_successors, backend), ending.error, ending.traceback)

    async def again(self, execution: Execution) -> None:
        """A delivery of a task that has ended before: the worker may have died before it told what follows.

        Parts of chords count once; errbacks may be called twice.
        """
        message = execution.message
        if not (message.chord or message.chain or message.errbacks):
            return
        record = (await _insist(lambda: self._store.get([execution.id]))).get(execution.id)
        if record is None:
            return
        if record.state == states.SUCCESS:
            if message.chord:
                await self._bring(execution, dumps(record.result))
        elif record.state == states.FAILURE:
            backend = self._backend_of(execution)
            error = backend.exception_to_python(record.result)
            await self._tell(execution, partial(fail_successors, backend), error, record.traceback)

    async def carry_out(self, plan: Plan, *, again: bool = False, apart: bool = False) -> None:
        """Do what was planned, and what that leads to. Raises what no waiting helps against.

        ``again``: on behalf of a task that was delivered again. ``apart``: see :func:`celeriac.planning.publish`.
        """
        await _insist(lambda: prepare(plan, self._store))
        if plan.replies and self._replies is not None:
            await self._replies.send(plan.replies)
        if plan.calls or plan.foreign:
            await _insist(lambda: publish(plan, self._publisher, apart=apart))
        for errback in plan.errbacks:
            await _call_errback(errback)
        if plan.parts:
            await self._count(plan.parts, again=again)

    def _backend_of(self, execution: Execution) -> Any:
        return (execution.task or self._app).backend

    async def _bring(self, execution: Execution, result: str) -> None:
        message = execution.message
        if message.group_id is None:
            return
        part = ChordPart(message.group_id, message.id, message.group_index, states.SUCCESS, result)
        try:
            await self._count([Part(part, message.chord)], again=execution.redelivered)
        except Exception:
            logger.exception("Task %s[%s]: its chord could not be told", execution.name, execution.id)

    async def _tell(self, execution: Execution, function: Callable[..., Any], *arguments: Any) -> None:
        """The result is stored already: what goes wrong now is logged, and changes nothing of it."""
        try:
            known = await self._states(chain_ids(execution.message.chain))
            with self._planning(known) as plan:
                function(execution.request, *arguments)
            await self.carry_out(plan, again=execution.redelivered)
        except Exception:
            logger.exception("Task %s[%s]: what follows it could not be told", execution.name, execution.id)

    async def _states(self, task_ids: list[str]) -> dict[str, str]:
        if not task_ids:
            return {}
        records = await _insist(lambda: self._store.get(task_ids))
        return {task_id: record.state for task_id, record in records.items()}

    @contextmanager
    def _planning(self, known: dict[str, str] | None = None) -> Iterator[Plan]:
        with collecting(Plan(self._app, self._calls, states=known or {}, ahead=False)) as plan:
            yield plan

    async def _count(self, parts: list[Part], *, again: bool = False) -> None:
        """Count parts of chords; whoever brings the last one calls the body."""
        add = self._store.add_chord_parts_again if again else self._store.add_chord_parts
        claims = await _insist(lambda: add([each.part for each in parts]))
        bodies = {each.part.group_id: each.body for each in parts}
        for claim in claims:
            await self._complete(claim, bodies[claim.group_id])

    async def _complete(self, claim: ChordClaim, body: Any) -> None:
        """Call the body of a chord whose parts are all there, or fail it; its parts are not needed any more."""
        signature = maybe_signature(body, app=self._app)
        outcome = await _insist(partial(gather, self._app, self._store, claim))
        try:
            await self._call_body(signature, outcome)
        except Exception as exc:  # noqa: BLE001 - refused for good: whoever waits for the body has to hear of it
            await self._call_body(signature, ChordError(f"Callback error: {exc!r}"))
        finally:
            await _insist(partial(self._store.finish_chord, claim))

    async def _call_body(self, body: Any, outcome: list[Any] | ChordError) -> None:
        await self.carry_out(await self._lay_out([body], call_body, self._app, body, outcome))

    async def _lay_out(
        self, signatures: Sequence[Any], function: Callable[..., None], *arguments: Any
    ) -> Plan:
        """Plan the call of these; in a thread, if they are many."""

        def lay_out() -> Plan:
            with self._planning() as plan:
                function(*arguments)
            return plan

        large = any(map(is_large, signatures))
        return await asyncio.to_thread(lay_out) if large else lay_out()


def _travelling(execution: Execution, ending: Ending) -> Any:
    """What a task returned, as its successors get it: whatever JSON makes of it, if it can."""
    if ending.result is not None:
        return loads(ending.result)
    task = execution.task
    return task.schema.dump_result(ending.value) if isinstance(task, Task) else ending.value


def _call_successors(execution: Execution, value: Any) -> None:
    """As Celery's tracer does: groups on their own, the other callbacks as one group, then the chain's next step."""
    app = execution.task.app
    message = execution.message
    options: dict[str, Any] = {"parent_id": message.id, "root_id": message.root_id or message.id}
    if app.conf.task_inherit_parent_priority:
        options["priority"] = execution.delivery_info.get("priority")
    singles = []
    for callback in message.callbacks or ():
        signature = maybe_signature(callback, app=app)
        if isinstance(signature, group):
            signature.apply_async((value,), **options)
        else:
            singles.append(signature)
    if len(singles) == 1:
        singles[0].apply_async((value,), **options)
    elif singles:
        group(singles, app=app).apply_async((value,), **options)
    if message.chain:
        # The chain travels reversed: its last element is the next step.
        following = maybe_signature(message.chain[-1], app=app)
        following.apply_async((value,), chain=message.chain[:-1], **options)


async def _call_errback(errback: Errback) -> None:
    """Call an errback of the new style, which takes request, exception and traceback; a ``def`` one in a thread."""
    signature = errback.signature
    try:
        if inspect.iscoroutinefunction(signature.type.run):
            await signature(*errback.arguments)
            return
        value = await asyncio.to_thread(signature, *errback.arguments)
        if inspect.isawaitable(value):  # of a plain function around a coroutine function
            await value
    except Exception:
        logger.exception("Errback %r raised an exception", signature.name)


async def _insist(operation: Callable[[], Awaitable[T]]) -> T:
    """Try again until the servers are back. Raises what they refuse for good."""
    delay, longest = _BACKOFF
    while True:
        try:
            return await operation()
        except (OperationalError, BrokerError, StoreUnavailable) as exc:
            if getattr(exc, "permanent", False):
                raise
            logger.error("Cannot publish what follows a task, trying again in %.1f s: %s", delay, exc)
        await asyncio.sleep(delay)
        delay = min(delay * 2, longest)
