"""Publish a canvas (chain, group, chord, …) without blocking the loop, and hand out what its caller waits for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from celery import states
from celery.canvas import Signature
from celery.result import GroupResult, ResultBase

from celeriac import compat
from celeriac.eager import EagerHandle, run_apart, runs_eagerly
from celeriac.errors import InvalidArguments, StoreError, StoreUnavailable
from celeriac.handle import GroupHandle, TaskHandle, task_ids_of
from celeriac.planning import Plan, collecting, prepare, publish
from celeriac.propagation import owned
from celeriac.stores.base import Store
from celeriac.stores.records import Transition

__all__ = ["enqueue_canvas", "is_large"]

#: A canvas of more tasks than this is laid out in a thread: each costs about 0.2 ms, and the loop has others to serve.
_MOST_ON_LOOP = 16


async def enqueue_canvas(
    app: Any, signature: Signature, args: Sequence[Any], kwargs: Mapping[str, Any], options: dict[str, Any]
) -> TaskHandle[Any]:
    """Publish what a canvas begins with, in one step of the broker, all or none.

    ``options`` are those of ``apply_async``, ``owner`` and ``deadline``. The handle is on the last task of a chain, on
    the body of a chord, on all members of a group. Raises what ``celery.enqueue`` raises, and StoreUnavailable for a
    chord: the store counts its parts.

    With ``task_always_eager`` nothing is published, and all of it has run when this returns.
    """
    deadline = options.pop("deadline", None)
    # Of all that is published now, but for what has an owner of its own; the rest inherits it.
    shared = {"owner": options.pop("owner")} if "owner" in options else None
    copied = signature.clone()
    # ``clone`` makes plain signatures of map, starmap and chunks.
    signature = copied if type(copied) is type(signature) else signature
    compat.set_app(signature, app)
    if _last(signature).get("subtask_type") == "chain":
        raise InvalidArguments("This chain has no task.")
    if await runs_eagerly(app):
        with owned(shared):
            return _ended(await run_apart(signature.apply_async, (tuple(args), dict(kwargs)), options))
    connection = await app._connections.here()
    given = {options.get("task_id"), *(task["options"].get("task_id") for task in _tasks_in(signature))} - {
        None
    }
    plan = Plan(app, connection.calls, options=shared)

    def lay_out() -> ResultBase:
        with collecting(plan):
            return signature.apply_async(tuple(args), dict(kwargs), **options)

    result = await asyncio.to_thread(lay_out) if is_large(signature) else lay_out()
    handle = _handle_on(app, result, signature)
    limit = app.settings.publish_deadline if deadline is None else deadline
    started = time.monotonic()
    try:
        async with asyncio.timeout(limit):
            known = await _recorded(connection.store, given) if given else given
            for call in plan.calls:
                call.fresh, call.known = call.task_id not in known, known
            _record_ends(plan, handle)
            await prepare(plan, connection.store)
    except TimeoutError:
        raise StoreUnavailable(
            f"The store did not answer within {limit:g} seconds; nothing was enqueued."
        ) from None
    await publish(plan, connection.publisher, max(0.0, limit - (time.monotonic() - started)))
    return handle


async def _recorded(store: Store, task_ids: Collection[str]) -> Collection[str]:
    """Which of these tasks have records already, which must not go if the canvas is not published."""
    try:
        return set(await store.get(list(task_ids)))
    except StoreError:
        return task_ids


def _record_ends(plan: Plan, handle: TaskHandle[Any]) -> None:
    """What the caller has a handle on gets a record now, though it may be published much later."""
    if not plan.calls:
        return
    first = plan.calls[0]
    known = {step.task_id for call in plan.calls for step in (call.record, *call.ahead)}
    first.ahead = [
        *first.ahead,
        *(
            Transition(
                task_id=task_id,
                state=states.PENDING,
                at=first.record.at,
                root_id=first.record.root_id,
                owner=first.record.owner,
            )
            for task_id in task_ids_of(handle)
            if task_id not in known
        ),
    ]


def is_large(signature: Mapping[str, Any]) -> bool:
    """Whether a canvas is to be laid out in a thread: a signature, or what it was sent as."""
    return len(list(islice(_tasks_in(signature), _MOST_ON_LOOP + 1))) > _MOST_ON_LOOP


def _tasks_in(signature: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The tasks of a canvas, one by one, as far as somebody asks."""
    kind, parts = signature.get("subtask_type"), signature.get("kwargs") or {}
    if kind not in ("group", "chain", "chord"):
        yield signature
        return
    tasks = parts.get("header" if kind == "chord" else "tasks")
    if isinstance(tasks, Mapping):
        yield from _tasks_in(tasks)
    elif isinstance(tasks, (list, tuple)):  # a generator is left alone: Celery runs through it once
        for task in tasks:
            yield from _tasks_in(task)
    if kind == "chord" and (body := parts.get("body")) is not None:
        yield from _tasks_in(body)


def _handle_on(app: Any, result: Any, signature: Any) -> TaskHandle[Any]:
    """The handle on a canvas's result, and for its value on the task type that it comes from."""
    last = _last(signature)
    if not isinstance(result, GroupResult):
        handle: TaskHandle[Any] = app._handle(result.id, app._registered(last.get("task")))
        return handle
    ends = list(last.tasks) if last.get("subtask_type") == "group" else []
    if len(ends) != len(result.results):
        ends = [Signature()] * len(result.results)
    return GroupHandle(
        result.id, [_handle_on(app, part, end) for part, end in zip(result.results, ends, strict=True)]
    )


def _ended(result: Any) -> TaskHandle[Any]:
    """The handle on what has been run eagerly."""
    if isinstance(result, GroupResult):
        return GroupHandle(result.id, [_ended(part) for part in result.results])
    return EagerHandle(result)


def _last(signature: Any) -> Any:
    """What a canvas ends with: a single task, or a group."""
    kind = signature.get("subtask_type")
    if kind == "chain" and signature.tasks:
        return _last(signature.tasks[-1])
    return _last(signature.body) if kind == "chord" and signature.body is not None else signature
