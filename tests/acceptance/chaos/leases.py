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

#: Seconds that a slow machine may take to start them all.
_STARTS = 5.0


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
    # Each has room for all: who survives must not have to finish something first.
    workers = await asyncio.gather(*(site.start_worker("-c", str(5 * _TASKS)) for _ in range(2)))
    before = set((await asyncio.to_thread(site.audit)).starts)
    lengths = [chance.uniform(1.2, 2.0) * lease + _STARTS for _ in range(2 * _TASKS)]
    long = await asyncio.gather(*(_enqueue(site, seconds) for seconds in lengths))
    due = time.time() + 1.6 * lease
    delayed = await asyncio.gather(*(_enqueue(site, 0.0, countdown=1.6 * lease) for _ in range(_TASKS)))
    await site.wait_for_starts(len(before) + len(long))
    await asyncio.sleep(chance.random() * lease / 3)
    audit = await asyncio.to_thread(site.audit)
    doomed, other = sorted(workers, key=lambda worker: -len(audit.unfinished(worker.pid)))
    unfinished = audit.unfinished(doomed.pid)
    death = Death(time.time(), doomed.pid)
    site.deaths.append(death)
    doomed.kill()
    figures.faults["worker SIGKILL"] += 1
    left = await wait_for_outcomes(site, [*long, *delayed], 3 * lease + 20)
    audit = await asyncio.to_thread(site.audit)
    figures.enqueued += len(long) + len(delayed)
    figures.lost += [f"{task_id}: {state}" for task_id, state in left.items()]
    figures.doubled = audit.doubled(site.deaths)
    figures.repeated = len(audit.repeated())
    recoveries = audit.recoveries([death])
    figures.recovery = max([*recoveries, figures.recovery or 0.0])
    if not unfinished or len(recoveries) < len(unfinished):
        figures.broken.append(
            f"{len(recoveries)} of {len(unfinished)} tasks of the dead worker were started again"
        )
    if max(recoveries, default=0.0) > lease + SLACK:
        figures.broken.append(f"a task was started {max(recoveries):.1f} s after its worker's death")
    early = [task_id for task_id in delayed if any(start.at < due - 0.05 for start in audit.starts[task_id])]
    figures.broken += [f"{task_id} was started before its time" for task_id in early]
    other.terminate()
    await asyncio.to_thread(other.wait, 40)


async def _enqueue(site: Site, seconds: float, **options: float) -> str:
    return (await site.client.enqueue("auditor.work", (seconds,), **options)).id
