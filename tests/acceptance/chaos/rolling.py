"""Promise 4: SIGTERM loses nothing, runs nothing twice, and the worker has ended within the grace period."""

from __future__ import annotations

import asyncio
import random
import time

from tests.acceptance.chaos.figures import Figures
from tests.acceptance.chaos.reckoning import fill, measured
from tests.acceptance.chaos.site import Site

__all__ = ["restart_workers"]

#: Seconds within which a worker has ended: the default. The longest task takes 1.5.
_GRACE = 25.0


async def restart_workers(site: Site, chance: random.Random, *, rounds: int, rate: float = 30.0) -> Figures:
    """Replace one of two workers after the other, so many times, while a process enqueues."""
    site.configure(celeriac_lease=30.0, celeriac_shutdown_grace=_GRACE)
    figures = Figures(4, site.broker, recovery=0.0)
    with measured(figures):
        async with site.client:
            workers = list(await asyncio.gather(*(site.start_worker("-c", "20") for _ in range(2))))
            publisher = await site.start_publisher(chance.random(), rate=rate, longest=1.5)
            following = asyncio.create_task(site.start_worker("-c", "20"))
            for number in range(rounds):
                workers.append(await following)
                last = number + 1 == rounds or site.expired
                if not last:  # while the old one ends, as a process takes its time to start
                    following = asyncio.create_task(site.start_worker("-c", "20"))
                await asyncio.sleep(chance.random() / 2)
                old = workers.pop(0)
                began = time.monotonic()
                old.terminate()
                figures.faults["worker SIGTERM"] += 1
                code = await asyncio.to_thread(old.wait, 2 * _GRACE)
                took = time.monotonic() - began
                figures.recovery = max(figures.recovery or 0.0, took)
                if code != 0 or took > _GRACE:
                    figures.broken.append(
                        f"a worker ended after {took:.1f} s with {code}: {old.output[-500:]}"
                    )
                if last:
                    break
            publisher.terminate()
            await asyncio.to_thread(publisher.wait, 30)
            audit = await fill(figures, site, patience=20, deaths=())
            figures.lost += [f"{task_id} was stopped" for task_id in _stopped(audit.lines)]
    return figures


def _stopped(lines: object) -> list[str]:
    return [line.task_id for line in lines if line.what == "stop"]  # type: ignore[attr-defined]
