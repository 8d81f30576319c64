"""What follows a task: callbacks, the rest of its chain, its chord, its errbacks.

Celery's own code publishes them, synchronously, so it runs in a thread, in the execution's context: the successors
know their parent and root.
"""

from __future__ import annotations

import asyncio
from typing import Any

from celery import states
from celery.canvas import group, maybe_signature

from celeriac.compat import fail_successors
from celeriac.worker.ending import Ending
from celeriac.worker.execution import Execution

__all__ = ["after_failure", "after_result", "before_result"]


async def before_result(execution: Execution, value: Any) -> None:
    """Publish callbacks and the next step of the chain; in Celery's tracer, too, before the result is stored.

    Raises what publishing raises: a task whose successors are not on their way has not succeeded.
    """
    message = execution.message
    if message.callbacks or message.chain:
        await asyncio.to_thread(_publish, execution, value)


async def after_result(execution: Execution, value: Any) -> None:
    """Tell the chord that one of its parts is done, now that its result can be read."""
    if execution.message.chord:
        backend = execution.task.backend
        await asyncio.to_thread(backend.on_chord_part_return, execution.request, states.SUCCESS, value)


async def after_failure(execution: Execution, ending: Ending) -> None:
    """Call errbacks, and let chord and chain know that this part will not come."""
    message = execution.message
    if ending.state == states.REVOKED:
        if message.chord:
            backend = execution.task.backend
            await asyncio.to_thread(
                backend.on_chord_part_return, execution.request, ending.state, ending.error
            )
    elif ending.error is not None and (message.errbacks or message.chain or message.chord):
        await asyncio.to_thread(
            fail_successors, execution.task.backend, execution.request, ending.error, ending.traceback
        )


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
