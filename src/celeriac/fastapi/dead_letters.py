"""The routes of dead letters: the list, and their replay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query

from celeriac.dead_letters import owner_of
from celeriac.fastapi.access import Access
from celeriac.fastapi.endpoints import UNAVAILABLE
from celeriac.fastapi.errors import describe
from celeriac.fastapi.models import DeadLetterIds, DeadLetterOut, DeadLetterPage, Replayed

if TYPE_CHECKING:
    from celeriac.app import Celery

__all__ = ["add_dead_letters", "add_replay"]

#: Dead letters among which those of one owner are looked for, the newest first.
_MOST = 10_000


def add_dead_letters(router: APIRouter, celery: Celery, access: Access) -> None:
    """``GET /dead-letters``; to be added before ``GET /{task_id}``, which would take it for an id."""

    @router.get("/dead-letters", response_model=DeadLetterPage, responses=describe(_503=UNAVAILABLE))
    async def list_dead_letters(
        queue: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        caller: str | None = access.caller,
    ) -> DeadLetterPage:
        """Messages that nobody delivers any more, newest first: they had no outcome too often, or were no tasks."""
        letters = await celery.dead_letters(queue, limit if caller is None else _MOST)
        if caller is not None:
            letters = [letter for letter in letters if owner_of(letter) == caller][:limit]
        return DeadLetterPage(items=[DeadLetterOut.of(letter) for letter in letters])


def add_replay(router: APIRouter, celery: Celery, access: Access) -> None:
    """``POST /dead-letters/replay``."""

    @router.post(
        "/dead-letters/replay",
        status_code=202,
        response_model=Replayed,
        responses=describe(_503=UNAVAILABLE),
    )
    async def replay_dead_letters(letters: DeadLetterIds, caller: str | None = access.caller) -> Replayed:
        """Put dead letters back into their queues; their tasks' records start over. Others' are left alone."""
        ids = set(letters.ids)
        if caller is not None:
            found = await celery.dead_letters(limit=_MOST)
            ids &= {letter.id for letter in found if owner_of(letter) == caller}
        return Replayed(replayed=await celery.replay_dead_letters(ids))
