"""Workers that die between a part's result and its chord."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from celery import chord

from celeriac import Celery
from celeriac.worker.embedded import run_embedded
from celeriac.worker.successors import Successors


@pytest.mark.parametrize("ignored", [False, True])
async def test_a_part_whose_chord_was_not_told_brings_its_value(
    monkeypatch: pytest.MonkeyPatch, ignored: bool
) -> None:
    url = f"memory://{uuid4()}"
    app = Celery("crashes", broker=url, backend=url, set_as_current=False)
    app.conf.celeriac_shutdown_grace = 1.0
    app.conf.celeriac_lease = 1.0
    runs = 0

    @app.task(name="five", ignore_result=ignored)
    async def five() -> int:
        nonlocal runs
        runs += 1
        return 5

    @app.task(name="total")
    async def total(values: list[int]) -> int:
        return sum(values)

    after_result, crashed = Successors.after_result, False

    async def crash(successors: Successors, execution: Any, ending: Any) -> None:
        nonlocal crashed
        if execution.name == "five" and not crashed:
            crashed = True
            raise RuntimeError("this worker dies")
        await after_result(successors, execution, ending)

    monkeypatch.setattr(Successors, "after_result", crash)
    async with app, run_embedded(app, concurrency=1):
        assert await (await app.enqueue(chord([five.s(), five.s()], total.s()))).result(10) == 10
    # What is kept of the result need not be worked out again.
    assert runs == (3 if ignored else 2)
