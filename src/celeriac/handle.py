"""A handle on one task: its state, its result, its events, and the way to cancel it."""

from __future__ import annotations

import asyncio
import builtins
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from celeriac.errors import ResultTimeout, TaskFailed, TaskNotFound, TaskRevoked
from celeriac.stores.records import TaskEvent, TaskRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from celeriac.stores.base import Store

__all__ = ["GroupHandle", "TaskHandle", "task_ids_of"]

R = TypeVar("R")

#: Members of a group that are asked for in one tick of the loop, which is one question to the store.
_ASKED = 500


class TaskHandle(Generic[R]):
    """What ``enqueue`` returns, and ``celery.handle(task_id)`` makes from an id.

    ``store`` is asked for anew at each call, so that a handle outlives the connection it was made under.
    """

    __slots__ = ("_load_result", "_store", "id")

    def __init__(
        self,
        task_id: str,
        store: Callable[[], Store],
        load_result: Callable[[Any], Any] | None = None,
    ) -> None:
        self.id = task_id
        self._store = store
        self._load_result = load_result

    def __repr__(self) -> str:
        return f"TaskHandle({self.id!r})"

    async def record(self) -> TaskRecord:
        """The whole record. Raises TaskNotFound for an id that was never enqueued, or has expired."""
        records = await self._store().get([self.id])
        if self.id not in records:
            raise TaskNotFound(
                f"There is no task {self.id!r}: it was never enqueued, or its record has expired.", self.id
            )
        return records[self.id]

    async def state(self) -> str:
        """The task's state, one of Celery's. Raises TaskNotFound."""
        return (await self.record()).state

    async def result(self, timeout: float | None = None) -> R:
        """Wait for the end, and return what the task returned.

        ``timeout`` is in seconds. Raises TaskNotFound, ResultTimeout, TaskRevoked, or what the task raised: an
        exception of the task's own class where this process knows it, as Celery's ``AsyncResult.get`` does, with a
        TaskFailed as its cause; else the TaskFailed.
        """
        try:
            async with asyncio.timeout(timeout):
                record = await self._ready()
        except TimeoutError:
            raise ResultTimeout(
                f"The task {self.id} was not ready within {timeout} seconds.", self.id
            ) from None
        if record.state == "SUCCESS":
            return cast("R", self._load_result(record.result) if self._load_result else record.result)
        raise failure_of(record)

    async def _ready(self) -> TaskRecord:
        record = await self.record()
        if record.ready:
            return record
        async with self._store().watch(self.id, until_ready=True) as watch:
            while not (record := await self.record()).ready:
                await watch.changed()
        return record

    async def events(self, after: str | None = None) -> AsyncIterator[TaskEvent]:
        """Every event of the task in order, from its beginning or from after one, until it has ended.

        Raises TaskNotFound, and ValueError when ``after`` is no event's id.
        """
        store = self._store()
        async with store.watch(self.id) as watch:
            await self.record()
            while True:
                page = await store.events(self.id, after)
                for event in page:
                    yield event
                    after = event.id
                if page:
                    continue
                # Asked after the last event was read: an end that is recorded has its events before it.
                if (await self.record()).ready and not await store.events(self.id, after, limit=1):
                    return
                await watch.changed()

    async def cancel(self) -> bool:
        """Ask that the task does not run, or stops. Whether it was known and had not ended.

        The mark is durable: it holds with every worker offline.
        """
        return self.id in await self._store().request_cancel([self.id])


class GroupHandle(TaskHandle[list[Any]]):
    """What ``enqueue`` returns for a group: a handle on all its members, in their order.

    A group has no record of its own; ``record`` and ``events`` are those of its ``members``.
    """

    __slots__ = ("members",)

    def __init__(self, group_id: str, members: Sequence[TaskHandle[Any]]) -> None:
        store = members[0]._store if members else _no_store
        super().__init__(group_id, store)
        self.members = tuple(members)

    def __repr__(self) -> str:
        return f"GroupHandle({self.id!r}, {list(self.members)!r})"

    async def record(self) -> TaskRecord:
        """Raises TaskNotFound: ask the ``members``."""
        raise TaskNotFound(f"{self.id!r} is a group, which has no record: ask its members.", self.id)

    async def state(self) -> str:
        """SUCCESS when all members have succeeded, the state of the first that has not ended well, else PENDING."""
        found: list[str] = []
        for start in range(0, len(self.members), _ASKED):
            members = self.members[start : start + _ASKED]
            found += await asyncio.gather(*(member.state() for member in members))
        wrong = next((state for state in found if state in ("FAILURE", "REVOKED")), None)
        return wrong or ("SUCCESS" if all(state == "SUCCESS" for state in found) else "PENDING")

    async def result(self, timeout: float | None = None) -> list[Any]:
        """Wait for all, and return their results in order.

        Raises as ``TaskHandle.result`` does, for the first member to fail.
        """
        try:
            async with asyncio.timeout(timeout), asyncio.TaskGroup() as waiting:
                results = [waiting.create_task(member.result()) for member in self.members]
        except TimeoutError:
            raise ResultTimeout(
                f"The group {self.id} was not ready within {timeout} seconds.", self.id
            ) from None
        except BaseExceptionGroup as failures:
            raise _first_of(failures) from None
        return [result.result() for result in results]

    async def cancel(self) -> bool:
        """Cancel all members. Whether any was known and had not ended."""
        ids = task_ids_of(self)
        return bool(await self._store().request_cancel(ids)) if ids else False


def task_ids_of(handle: TaskHandle[Any]) -> list[str]:
    """The ids of the tasks that a handle is on: one, or those of a group's members."""
    if isinstance(handle, GroupHandle):
        return [task_id for member in handle.members for task_id in task_ids_of(member)]
    return [handle.id]


def _first_of(failures: BaseExceptionGroup) -> BaseException:
    first = failures.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first


def _no_store() -> Store:
    raise TaskNotFound("The group has no members.", "")


def failure_of(record: TaskRecord) -> BaseException:
    """The exception that tells how a task ended which did not succeed."""
    result = record.result if isinstance(record.result, dict) else {}
    name = str(result.get("exc_type") or record.state)
    message = result.get("exc_message")
    args = tuple(message) if isinstance(message, (list, tuple)) else (() if message is None else (message,))
    text = ", ".join(str(arg) for arg in args)
    if record.state == "REVOKED":
        return TaskRevoked(f"The task {record.id} was revoked: {text or 'cancelled'}", record.id)
    failed = TaskFailed(
        f"{name}: {text}",
        record.id,
        exc_type=name,
        exc_message=text,
        traceback=record.traceback,
    )
    original = _rebuild(name, result.get("exc_module"), args)
    if original is None:
        return failed
    original.__cause__ = failed
    return original


def _rebuild(name: str, module: Any, args: tuple[Any, ...]) -> BaseException | None:
    """An exception of the recorded class, if this process has that class; never imports, so a record runs no code."""
    namespace = sys.modules.get(module) if isinstance(module, str) else builtins
    cls: Any = namespace
    for part in name.split("."):
        cls = getattr(cls, part, None)
    if not (isinstance(cls, type) and issubclass(cls, Exception)):
        return None
    try:
        return cls(*args)
    except Exception:  # noqa: BLE001 - a class with a signature of its own; TaskFailed tells the same
        return None
