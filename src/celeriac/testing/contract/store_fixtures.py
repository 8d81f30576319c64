"""The stores under test, and short ways to write what happens to a task."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio

from celeriac.stores.base import Store
from celeriac.stores.records import TaskRecord, Transition

__all__ = ["FAILURE", "NOW", "NewStore", "StoreFixtures", "at", "only", "step", "steps"]

#: Makes a store, not open yet, that keeps finished records for so many seconds.
NewStore = Callable[[float | None], Store]

#: When the tasks of the tests live, in epoch seconds; with a fraction that a float holds exactly.
NOW = 1_790_000_000.25

#: How Celery writes an exception.
FAILURE = json.dumps({"exc_type": "ValueError", "exc_message": ["no", 1], "exc_module": "builtins"})


def at(seconds: float) -> datetime:
    """The moment so many seconds after ``NOW``."""
    return datetime.fromtimestamp(NOW + seconds, UTC)


def step(task_id: str, state: str, seconds: float = 0.0, **fields: Any) -> Transition:
    """A transition so many seconds after ``NOW``."""
    return Transition(task_id=task_id, state=state, at=NOW + seconds, **fields)


def steps(task_id: str, *states: str, **fields: Any) -> list[Transition]:
    """Transitions of one task, a second apart; those that fail fail with ``FAILURE``."""
    failed = ("FAILURE", "RETRY")
    return [
        step(task_id, state, second, **({"result": FAILURE} if state in failed else {}), **fields)
        for second, state in enumerate(states)
    ]


async def only(store: Store, task_id: str) -> TaskRecord:
    """The task's record, which must exist."""
    return (await store.get([task_id]))[task_id]


class StoreFixtures:
    """Two open stores on one server."""

    pytestmark = pytest.mark.asyncio

    @pytest.fixture
    def new_store(self) -> NewStore:
        """Makes a store that is not open yet. To be given by the implementation's tests."""
        raise NotImplementedError("Give the contract a new_store fixture.")

    @pytest_asyncio.fixture
    async def store(self, new_store: NewStore) -> AsyncIterator[Store]:
        made = new_store(3600.0)
        await made.open()
        yield made
        await made.close()

    @pytest_asyncio.fixture
    async def other_store(self, new_store: NewStore) -> AsyncIterator[Store]:
        made = new_store(3600.0)
        await made.open()
        yield made
        await made.close()
