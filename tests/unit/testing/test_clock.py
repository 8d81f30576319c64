"""The clock of a test: ETA, retries and expiry without waiting."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery.schedules import crontab

from celeriac import Celery
from celeriac.errors import ResultTimeout, StillRunning
from celeriac.testing import in_memory


async def test_tasks_run_at_their_times_and_in_their_order(celery: Celery) -> None:
    ran: list[tuple[str, float]] = []

    async with in_memory(celery) as tasks:

        @celery.task
        async def note(what: str) -> None:
            ran.append((what, tasks.clock.now() - start))

        start = tasks.clock.now()
        await note.using(countdown=600).enqueue("third")
        await note.using(eta=tasks.clock.time + timedelta(minutes=5)).enqueue("second")
        await note.using(countdown=timedelta(seconds=60)).enqueue("first")
        await note.using(countdown=601).enqueue("never")
        await tasks.idle()
        assert ran == []
        await tasks.clock.advance(minutes=10)
        assert [what for what, _ in ran] == ["first", "second", "third"]
        assert [at for _, at in ran] == pytest.approx([60, 300, 600])
        assert tasks.clock.now() == pytest.approx(start + 600)


def test_the_stock_countdown_follows_the_clock(celery: Celery) -> None:
    @celery.task
    def note() -> str:
        return "done"

    with in_memory(celery, at=datetime(2031, 5, 1, 12, tzinfo=UTC)) as tasks:
        result = note.apply_async(countdown=3600)
        tasks.idle()
        assert result.state == "PENDING"
        assert tasks.assert_enqueued(note.using(countdown=3600)).eta == datetime(2031, 5, 1, 13, tzinfo=UTC)
        tasks.clock.advance(hours=1)
        assert result.get(timeout=5) == "done"


async def test_all_retries_with_back_off_that_fall_into_the_time_run(celery: Celery) -> None:
    at: list[float] = []

    async with in_memory(celery) as tasks:

        @celery.task(
            bind=True,
            autoretry_for=(ConnectionError,),
            retry_backoff=60,
            retry_backoff_max=10_000,
            retry_jitter=False,
            max_retries=10,
        )
        async def flaky(self: Any) -> None:
            at.append(round(tasks.clock.now() - start))
            raise ConnectionError

        start = tasks.clock.now()
        handle = await flaky.enqueue()
        await tasks.clock.advance(hours=1)
        assert at == [0, 60, 180, 420, 900, 1860]
        assert (await handle.record()).state == "RETRY"


async def test_what_has_expired_does_not_run(celery: Celery) -> None:
    ran: list[str] = []

    @celery.task
    async def note(what: str) -> None:
        ran.append(what)

    async with in_memory(celery, mode="held") as tasks:
        late = await note.using(expires=60).enqueue("late")
        await note.using(expires=timedelta(hours=1)).enqueue("in time")
        await tasks.clock.advance(minutes=2)
        await tasks.run_until_idle()
        assert ran == ["in time"]
        record = await late.record()
        assert (record.state, record.error) == ("REVOKED", "TaskRevokedError - expired")


async def test_records_have_the_time_of_the_test(celery: Celery) -> None:
    @celery.task
    async def nothing() -> None: ...

    start = datetime(2030, 1, 1, tzinfo=UTC)
    async with in_memory(celery, at=start) as tasks:
        handle = await nothing.using(countdown=60).enqueue()
        await tasks.clock.move_to(start + timedelta(days=1))
        record = await handle.record()
        assert record.enqueued_at == start
        assert record.eta == record.started_at == record.finished_at == start + timedelta(minutes=1)
        assert [event.at async for event in handle.events()][-1] == record.finished_at
        with pytest.raises(ValueError, match="forward"):
            await tasks.clock.advance(seconds=-1)


async def test_a_running_task_keeps_its_lease_however_far_the_clock_is_moved(celery: Celery) -> None:
    runs: list[int] = []

    async with in_memory(celery) as tasks:

        @celery.task
        async def long() -> None:
            runs.append(1)
            tasks._stage.clock.set(tasks.clock.now() + 10 * 86_400)
            tasks._stage.queues.wake()

        handle = await long.enqueue()
        await tasks.idle()
        await tasks.clock.advance(days=365)
        assert await handle.state() == "SUCCESS"
        assert runs == [1]


async def test_the_schedule_is_kept_when_the_test_wants_it(celery: Celery) -> None:
    ran: list[tuple[str, str]] = []

    async with in_memory(celery, at=datetime(2030, 1, 1, 2, 30, tzinfo=UTC)) as tasks:
        await tasks.clock.advance(hours=24)
        assert tasks.enqueued == []

    celery.conf.beat_schedule = {
        "nightly": {"task": "note", "schedule": crontab(hour=3, minute=0), "args": ("nightly",)},
        "often": {"task": "note", "schedule": 3600.0, "kwargs": {"what": "often"}},
    }

    @celery.task(name="note", bind=True)
    async def note(self: Any, what: str) -> None:
        ran.append((what, f"{celery.now():%H:%M:%S.%f}"))

    for mode in ("worker", "held"):
        async with in_memory(
            celery, mode=mode, schedule=True, at=datetime(2030, 1, 1, 2, 30, tzinfo=UTC)
        ) as tasks:
            await tasks.clock.advance(hours=2)
            assert [f"{call.at:%H:%M:%S.%f}" for call in tasks.enqueued] == [
                "03:00:00.000000",
                "03:30:00.000000",
                "04:30:00.000000",
            ]
    assert ran == [
        ("nightly", "03:00:00.000000"),
        ("often", "03:30:00.000000"),
        ("often", "04:30:00.000000"),
    ]


async def test_who_waits_for_a_time_that_never_comes_is_told(celery: Celery) -> None:
    @celery.task
    async def nothing() -> None: ...

    async with in_memory(celery, timeout=0.1) as tasks:
        handle = await nothing.using(countdown=60).enqueue()
        with pytest.raises(StillRunning, match=r"is due in 60 s by the test's clock.*until clock.advance"):
            await handle.result()
        with pytest.raises(ResultTimeout):
            await handle.result(0.01)
        waiting = asyncio.create_task(handle.result())
        await tasks.clock.advance(minutes=1)
        assert await waiting is None
