"""The end of a chord's header: gather the results in the header's shape, and call the body with them.

As in Celery's Redis backend (``RedisBackend.on_chord_part_return``): a part that failed fails the body, with a
``ChordError`` that names it, and calls the body's errbacks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from celery import states
from celery.exceptions import ChordError
from celery.utils.log import get_logger

from celeriac.errors import StoreUnavailable
from celeriac.protocol.codec import loads
from celeriac.stores.base import Store
from celeriac.stores.chords import ChordClaim
from celeriac.stores.records import TaskRecord

__all__ = ["call_body", "gather"]

logger = get_logger(__name__)

#: Records that are read at once: others have their turn in between.
_READ = 500


async def gather(app: Any, store: Store, claim: ChordClaim) -> list[Any] | ChordError:
    """The results of a header, or why there are none. Raises StoreUnavailable."""
    try:
        return await _results(app, store, claim)
    except StoreUnavailable:
        raise
    except ChordError as exc:
        return exc
    except Exception as exc:  # noqa: BLE001 - a result that nobody can read must not leave the chord hanging
        return ChordError(f"Join error: {exc!r}")


def call_body(app: Any, body: Any, outcome: list[Any] | ChordError) -> None:
    """Plan the call of a chord's body, or its failure. To be called in a plan."""
    try:
        if isinstance(outcome, ChordError):
            raise outcome
        body.delay(outcome)
    except Exception as exc:
        error = exc if isinstance(exc, ChordError) else ChordError(f"Callback error: {exc!r}")
        logger.exception("The body %s of a chord is not called: %r", body.task, exc)
        # Inside the handler: Celery looks at the exception that is being handled.
        app.backend.chord_error_from_stack(body, error)


async def _results(app: Any, store: Store, claim: ChordClaim) -> list[Any]:
    if claim.header is None:
        return [_value(app, part.task_id, part.state, loads(part.result)) for part in claim.parts]
    tree = loads(claim.header)
    timeout = app.conf.result_chord_join_timeout
    leaves, records = _leaves(tree), dict[str, TaskRecord]()
    for start in range(0, len(leaves), _READ):
        records |= await store.get(leaves[start : start + _READ])
    async with asyncio.timeout(timeout):
        for task_id in leaves:
            if task_id not in records or not records[task_id].ready:
                records[task_id] = await _ended(store, task_id)
    return [_shaped(app, member, records) for member in tree[1]]


async def _ended(store: Store, task_id: str) -> TaskRecord:
    """The record of a part: it was counted after its result was stored, but perhaps by a worker with another clock."""
    async with store.watch(task_id, until_ready=True) as watch:
        while True:
            record = (await store.get([task_id])).get(task_id)
            if record is not None and record.ready:
                return record
            await watch.changed()


def _leaves(tree: Any) -> list[str]:
    """The ids of the tasks in ``GroupResult.as_tuple()``: ``[[id, parent], members]``, a task has no members."""
    (task_id, _parent), members = tree
    return [task_id] if members is None else [leaf for member in members for leaf in _leaves(member)]


def _shaped(app: Any, tree: Any, records: Mapping[str, TaskRecord]) -> Any:
    (task_id, _parent), members = tree
    if members is not None:
        return [_shaped(app, member, records) for member in members]
    record = records[task_id]
    return _value(app, task_id, record.state, record.result)


def _value(app: Any, task_id: str, state: str, result: Any) -> Any:
    if state not in states.PROPAGATE_STATES:
        return result
    error = app.backend.exception_to_python(result)
    raise ChordError(f"Dependency {task_id} raised {error!r}") from error
