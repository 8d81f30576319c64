"""Who may see what: the caller of a request, and the record that they asked for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from fastapi import Depends, params

from celeriac.errors import TaskExpired, TaskNotFound
from celeriac.stores.base import Store
from celeriac.stores.records import TaskRecord

if TYPE_CHECKING:
    from celeriac.app import Celery

__all__ = ["Access", "name_of"]


@dataclass(frozen=True, slots=True)
class Access:
    """The dependencies of the routes: who calls, whose tasks are listed, and the record of the path's ``task_id``.

    ``find`` gives the record of an id that a caller may see, and raises TaskNotFound.
    """

    caller: Any
    list_owner: Any
    record: Any
    find: Callable[[str, str | None], Awaitable[TaskRecord]]

    @classmethod
    def to(cls, celery: Celery, owner: Any) -> Access:
        """Access for everybody, or, with ``owner``, for each caller to their own tasks."""
        if owner is None:
            caller, list_owner = Depends(_anybody), Depends(_owner_filter)
        else:
            caller = list_owner = Depends(_caller(owner))

        async def find(task_id: str, caller: str | None) -> TaskRecord:
            found = (await celery.store.get([task_id])).get(task_id)
            # Somebody else's task is as unknown as one that never was, and takes as long to be: an id must not be
            # found by trying.
            if found is None or (caller is not None and found.owner != caller):
                raise await _missing(celery.store, task_id, caller)
            return found

        async def record(task_id: str, caller: str | None = caller) -> TaskRecord:
            return await find(task_id, caller)

        return cls(caller, list_owner, Depends(record), find)


async def _missing(store: Store, task_id: str, caller: str | None) -> TaskNotFound:
    """Why there is no record: nobody learns that somebody else's has expired."""
    gone = (await store.gone([task_id])).get(task_id)
    if gone is None or (caller is not None and gone.owner != caller):
        return TaskNotFound(task_id=task_id)
    return TaskExpired(task_id=task_id, expired_at=gone.at)


def _caller(owner: Any) -> Any:
    given = owner if isinstance(owner, params.Depends) else Depends(owner)

    async def caller(owner: Any = given) -> str:
        return name_of(owner)

    return caller


def name_of(owner: Any) -> str:
    """A caller's name, as records have it. Raises TypeError for what a dependency must not give."""
    # None or "" would mean "whatever the owner" further down, which is everybody's tasks.
    if isinstance(owner, (str, int, UUID)) and not isinstance(owner, bool) and str(owner):
        return str(owner)
    raise TypeError(f"owner= must give a non-empty str, an int or a UUID for each request; it gave {owner!r}")


async def _anybody() -> None:
    return None


async def _owner_filter(owner: str | None = None) -> str | None:
    return owner
