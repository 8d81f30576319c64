"""The files of a worker's tasks: open for each attempt, deleted after the last, and swept up where nobody did."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, BinaryIO

from celery import states
from celery.utils.log import get_logger

from celeriac.arguments import ArgumentSchema
from celeriac.errors import CeleriacError, StorageUnavailable
from celeriac.opening import put_in, upload, wanted
from celeriac.protocol.settlement import Action, Outcome
from celeriac.stores.base import Store
from celeriac.stores.records import TaskRecord
from celeriac.task import Task
from celeriac.uploads.reference import Reference, references_in
from celeriac.uploads.storage import Storage
from celeriac.worker.coroutines import wait_interruptibly
from celeriac.worker.ending import Ending
from celeriac.worker.execution import Execution

__all__ = ["TaskFiles", "files_of", "keeps_files", "sweep", "sweep_regularly"]

logger = get_logger(__name__)

#: Seconds between two sweeps.
_SWEEP = 900.0

#: Seconds that contents are kept where records are kept for ever.
_DAY = 86_400.0

#: Seconds that they are kept at least: a slow storage may take long, and there is no record before it is done.
_HOUR = 3600.0

#: What ``celery.app.task.Task.replace`` raises Ignore with: the task goes on as another, under its id.
_REPLACED = ("Replaced by new task",)

#: Records that are asked for at a time.
_BATCH = 500


class TaskFiles:
    """The parameters for files of one task type."""

    def __init__(self, schema: ArgumentSchema, storage: Storage) -> None:
        self._schema = schema
        self._storage = storage

    @contextlib.asynccontextmanager
    async def opened(self, execution: Execution) -> AsyncIterator[tuple[Sequence[Any], Any]]:
        """The arguments of an attempt, with its files open while the context lasts.

        Raises InvalidArguments for what is no reference, UploadGone, StorageUnavailable, and ``execution.stop``.
        """
        args, kwargs = execution.message.args, execution.message.kwargs
        references = wanted(self._schema, args, kwargs)
        if not references:  # bytes in the message itself, or nothing where a file may be
            yield args, kwargs
            return
        files: list[BinaryIO] = []
        opened: dict[Reference, Any] = {}

        async def open_all() -> None:
            for reference, as_bytes in references.items():
                if as_bytes:
                    opened[reference] = await self._storage.read(execution.id, reference)
                else:
                    files.append(await self._storage.open(execution.id, reference))
                    opened[reference] = upload(files[-1], reference)

        try:
            await wait_interruptibly(execution, open_all)
            yield put_in(self._schema, args, kwargs, opened)
        finally:
            await self._storage.close(files)


def keeps_files(execution: Execution, ending: Ending, action: Action) -> bool:
    """Whether there may be another attempt, which needs the files.

    A dead letter may be replayed, and a storage that did not answer may have answered by the time of a retry.
    """
    if action is not Action.ACKNOWLEDGE or isinstance(ending.error, StorageUnavailable):
        return True
    if ending.outcome is Outcome.IGNORED and getattr(ending.error, "args", None) == _REPLACED:
        return True
    return bool(ending.retries) or (ending.outcome is Outcome.RETRIED and bool(execution.held_retries))


def files_of(execution: Execution) -> list[Reference]:
    """The files that a task was sent. Those of a task that this worker does not know are left to who knows it."""
    task, message, found = execution.task, execution.message, list[Reference]()
    if isinstance(task, Task) and task.schema.takes_files:
        for reference in references_in(*message.args, *message.kwargs.values()):
            with contextlib.suppress(ValueError):  # not ours
                found.append(Reference.parse(reference))
    return found


async def sweep_regularly(app: Any, store: Store) -> None:
    """Delete what publishers and workers have left behind, for ever. Without tasks that take files, do nothing."""
    if not store.records:  # nobody knows what is still needed
        return
    while True:
        # Not all workers at once.
        await asyncio.sleep(_SWEEP * random.uniform(0.5, 1.5))
        if not any(map(_mentions_files, list(app.tasks.values()))):
            continue
        try:
            removed = await sweep(app.uploads, store)
        except CeleriacError as exc:
            logger.warning("Uploads that nobody needs were not deleted: %s", exc)
        else:
            if removed:
                logger.info("Deleted %d uploads that nobody needs any more.", removed)


async def sweep(storage: Storage, store: Store, *, now: float | None = None) -> int:
    """Delete contents that are older than records are kept, and whose task has no record or ended as long ago.

    ``now`` is epoch seconds. Returns how many there were. Raises StorageUnavailable, StoreUnavailable.
    """
    before = (time.time() if now is None else now) - max(store.expires or _DAY, _HOUR)
    removed = 0
    contents = await storage.contents(before)
    for start in range(0, len(contents), _BATCH):
        batch = contents[start : start + _BATCH]
        needed = await _needed(store, {task_id for task_id, _ in batch}, before)
        unneeded = [path for task_id, path in batch if task_id not in needed]
        await storage.remove(unneeded)
        removed += len(unneeded)
    return removed


async def _needed(store: Store, task_ids: Collection[str], before: float) -> set[str]:
    limit = datetime.fromtimestamp(before, UTC)
    records = await store.get(list(task_ids))

    def is_needed(record: TaskRecord) -> bool:
        if not record.ready or (record.finished_at is not None and record.finished_at > limit):
            return True
        return store.expires is None and record.state == states.FAILURE  # it may be replayed for ever

    return {task_id for task_id, record in records.items() if is_needed(record)}


def _mentions_files(task: Any) -> bool:
    """A look at a task's annotations that resolves none."""
    annotations: Iterable[Any] = getattr(getattr(task, "function", None), "__annotations__", {}).values()
    return any("UploadFile" in str(each) or "bytes" in str(each) for each in annotations)
