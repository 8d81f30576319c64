"""Promise 2: a dead worker's tasks go on within a lease and two seconds; time alone starts nothing twice."""

from __future__ import annotations

import asyncio
import random
import time

from tests.acceptance.chaos.audit import Death
from tests.acceptance.chaos.figures import Figures
from tests.acceptance.chaos.reckoning import measured, wait_for_outcomes
from tests.acceptance.chaos.site import Site

__all__ = ["SLACK", "outlive_a_worker"]

#: Seconds after the end of a lease within which the task is started elsewhere.
SLACK = 2.0

_TASKS = 20


async def outlive_a_worker(site: Site, chance: random.Random, *, lease: float, rounds: int = 1) -> Figures:
    """Kill one of two workers that hold tasks longer than a lease, while others wait for longer than one.

    ``lease`` is in seconds.
    """
    site.configure(celeriac_lease=lease, celeriac_delivery_limit=100)
    figures = Figures(2, site.broker, recovery=0.0)
    with measured(figures):
        async with site.client:
            for _ in range(rounds):
                await _one_round(site, chance, figures, lease)
                if site.expired:
                    break
    return figures


async def _one_round(site: Site, chance: random.Random, figures: Figures, lease: float) -> None:
    door = site.folder / f"door-{figures.faults.total()}"
    started = len((await asyncio.to_thread(site.audit)).starts)
    # The first is full when the second comes, which has room for the tasks of both.
    doomed = await site.start_worker("-c", str(_TASKS))
    long = await _enqueue(site, "hold", str(door))
    await site.wait_for_starts(started + _TASKS)
    other = await site.start_worker("-c", str(4 * _TASKS))
    long += await _enqueue(site, "hold", str(door))
    due = time.time() + 1.6 * lease
    delayed = await _enqueue(site, "work", 0.0, countdown=1.6 * lease)
    await site.wait_for_starts(started + 2 * _TASKS)
    await asyncio.sleep(chance.random() * lease / 3)
    unfinished = (await asyncio.to_thread(site.audit)).unfinished(doomed.pid)
    death = Death(time.time(), doomed.pid)
    site.deaths.append(death)
    doomed.kill()
    figures.faults["worker SIGKILL"] += 1
    await _until_started_again(site, figures, unfinished, death, lease)
    # Those of the other have lasted longer than a lease by then.
    await asyncio.sleep(max(0.0, death.at + 1.3 * lease - time.time()))
    await asyncio.to_thread(door.touch)
    left = await wait_for_outcomes(site, [*long, *delayed], lease + 30)
    audit = await asyncio.to_thread(site.audit)
    figures.enqueued += len(long) + len(delayed)
    figures.lost += [f"{task_id}: {state}" for task_id, state in left.items()]
    figures.doubled = audit.doubled(site.deaths)
    figures.repeated = len(audit.repeated())
    early = [task_id for task_id in delayed if any(start.at < due - 0.05 for start in audit.starts[task_id])]
    figures.broken += [f"{task_id} was started before its time" for task_id in early]
    other.terminate()
    await asyncio.to_thread(other.wait, 40)


async def _until_started_again(
    site: Site, figures: Figures, unfinished: list[str], death: Death, lease: float
) -> None:
    """Wait until what a dead worker had is under way elsewhere, and note how long that took."""
    recoveries: list[float] = []
    try:
        async with asyncio.timeout(2 * lease + 30):
            while len(recoveries) < len(unfinished):
                await asyncio.sleep(0.05)
                recoveries = (await asyncio.to_thread(site.audit)).recoveries([death])
    except TimeoutError:
        pass
    if not unfinished or len(recoveries) < len(unfinished):
        figures.broken.append(
            f"{len(recoveries)} of {len(unfinished)} tasks of the dead worker were started again"
        )
    figures.recovery = max([*recoveries, figures.recovery or 0.0])
    if max(recoveries, default=0.0) > lease + SLACK:
        figures.broken.append(f"a task was started {max(recoveries):.1f} s after its worker's death")


async def _enqueue(site: Site, name: str, *args: object, **options: float) -> list[str]:
    """Enqueue ``_TASKS`` of a kind. Returns their ids."""
    calls = (site.client.enqueue(f"auditor.{name}", args, **options) for _ in range(_TASKS))
    return [handle.id for handle in await asyncio.gather(*calls)]
