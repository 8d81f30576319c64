"""What follows a task: callbacks, the rest of its chain, its chord, its errbacks.

Celery's own code publishes them, synchronously, so it runs in a thread, in the execution's context: the successors
know their parent and root. A broker that is away is waited for: the task has run, and its successors must not be lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from celery import states
from celery.canvas import group, maybe_signature
from celery.utils.log import get_logger
from kombu.exceptions import OperationalError

from celeriac.compat import fail_successors
from celeriac.errors import BrokerUnavailable, StoreUnavailable
from celeriac.worker.ending import Ending
from celeriac.worker.execution import Execution

__all__ = ["after_failure", "after_result", "before_result"]

logger = get_logger(__name__)

_BACKOFF = (0.1, 5.0)


async def before_result(execution: Execution, value: Any) -> None:
    """Publish callbacks and the next step of the chain; in Celery's tracer, too, before the result is stored.

    Raises what publishing raises, but for an outage: a task whose successors cannot be published has not succeeded.
    """
    message = execution.message
    if message.callbacks or message.chain:
        await _insist(_publish, execution, value)


async def after_result(execution: Execution, value: Any) -> None:
    """Tell the chord that one of its parts is done, now that its result can be read."""
    if execution.message.chord:
        await _tell(execution, execution.task.backend.on_chord_part_return, states.SUCCESS, value)


async def after_failure(execution: Execution, ending: Ending) -> None:
    """Call errbacks, and let chord and chain know that this part will not come."""
    message = execution.message
    if ending.state == states.REVOKED:
        if message.chord:
            await _tell(execution, execution.task.backend.on_chord_part_return, ending.state, ending.error)
    elif ending.error is not None and (message.errbacks or message.chain or message.chord):
        await _tell(
            execution, partial(fail_successors, execution.task.backend), ending.error, ending.traceback
        )


async def _tell(execution: Execution, function: Callable[..., Any], *arguments: Any) -> None:
    """The result is stored already: what goes wrong now is logged, and changes nothing of it."""
    try:
        await _insist(function, execution.request, *arguments)
    except Exception:
        logger.exception("Task %s[%s]: what follows it could not be told", execution.name, execution.id)


async def _insist(function: Callable[..., Any], *arguments: Any) -> None:
    delay, longest = _BACKOFF
    while True:
        try:
            await asyncio.to_thread(function, *arguments)
            return
        except (OperationalError, BrokerUnavailable, StoreUnavailable) as exc:
            logger.error("Cannot publish what follows a task, trying again in %.1f s: %s", delay, exc)
            await asyncio.sleep(delay)
            delay = min(delay * 2, longest)


def _publish(execution: Execution, value: Any) -> None:
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
