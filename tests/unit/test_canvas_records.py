"""The records of a canvas: whose they are, and what becomes of them when it cannot be published."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from celery import chain, chord, group

from celeriac import Celery
from celeriac.errors import BrokerUnavailable, InvalidArguments, StoreUnavailable
from celeriac.worker.embedded import run_embedded


@pytest.fixture
def celery() -> Celery:
    url = f"memory://{uuid4()}"
    app = Celery("canvas-records", broker=url, backend=url, set_as_current=False)
    app.conf.celeriac_shutdown_grace = 1.0

    @app.task(name="add")
    async def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="total")
    async def total(values: list[int]) -> int:
        return sum(values)

    return app


def canvases(app: Celery) -> dict[str, Any]:
    add, total = app.tasks["add"], app.tasks["total"]
    return {
        "chain": chain(add.s(1, 1), add.s(2), add.s(3)),
        "chord": chord([add.s(1, 1), add.s(2, 2)], total.s()),
        "chord with a chain": chord([add.s(1, 1), add.s(2, 2)], chain(total.s(), add.s(1))),
        "chord in a chain": chain(add.s(1, 1), chord([add.s(1), add.s(2)], total.s())),
    }


@pytest.mark.parametrize("name", ["chain", "chord", "chord with a chain", "chord in a chain"])
async def test_the_end_of_a_canvas_has_its_owner(celery: Celery, name: str) -> None:
    async with celery:
        handle = await celery.enqueue(canvases(celery)[name], owner="ada")
        assert (await handle.record()).owner == "ada"
        async with run_embedded(celery):
            await handle.result(5)
        assert (await handle.record()).owner == "ada"


async def test_a_second_run_that_cannot_be_published_leaves_the_first_ones_records(
    celery: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_publications: Any) -> None:
        raise BrokerUnavailable("gone")

    async with celery:
        for canvas in canvases(celery).values():
            canvas.freeze()
            async with run_embedded(celery):
                handle = await celery.enqueue(canvas)
                result = await handle.result(5)
            with monkeypatch.context() as patched:
                patched.setattr(celery.broker, "publish", refuse)
                with pytest.raises(BrokerUnavailable):
                    await celery.enqueue(canvas)
            assert await handle.result(5) == result


@pytest.mark.parametrize("empty", [chain(), chain(chain(), chain())])
async def test_a_chain_of_nothing_is_refused(celery: Celery, empty: Any) -> None:
    async with celery:
        with pytest.raises(InvalidArguments, match="no task"):
            await celery.enqueue(empty)


async def test_a_group_of_nothing_has_no_results(celery: Celery) -> None:
    async with celery:
        assert await (await celery.enqueue(group([]))).result(1) == []


async def test_a_store_that_does_not_answer_counts_towards_the_deadline(
    celery: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_arguments: Any) -> None:
        await asyncio.Event().wait()

    async with celery:
        monkeypatch.setattr(celery.store, "set_chord_size", never)
        async with asyncio.timeout(5):
            with pytest.raises(StoreUnavailable, match="nothing was enqueued"):
                await celery.enqueue(canvases(celery)["chord"], deadline=0.1)
        assert await celery.queue_size("celery") == 0
