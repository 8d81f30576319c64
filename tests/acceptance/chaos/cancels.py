"""Promise 7: a task that was cancelled does not start, or stops, whatever happens to workers and servers meanwhile."""

from __future__ import annotations

import asyncio
import random
import time

from tests.acceptance.chaos.audit import Death
from tests.acceptance.chaos.figures import Figures
from tests.acceptance.chaos.reckoning import measured, wait_for_outcomes
from tests.acceptance.chaos.site import Site
from tests.acceptance.processes import Process

__all__ = ["cancel_anything"]

#: Seconds within which a running task has stopped.
_STOPS = 5.0


async def cancel_anything(
    site: Site, chance: random.Random, *, rounds: int, lease: float, restarts: bool = True
) -> Figures:
    """Cancel tasks that wait, are delayed, are about to be tried again, and run, with and without workers.

    ``restarts``: whether the servers are killed, and started again, before the workers come back.
    """
    site.configure(celeriac_lease=lease, celeriac_delivery_limit=100)
    figures = Figures(7, site.broker, recovery=0.0)
    with measured(figures):
        async with site.client:
            for number in range(rounds):
                await _one_round(site, chance, figures, number, restarts)
                if site.expired:
                    break
    return figures


async def _one_round(
    site: Site, chance: random.Random, figures: Figures, number: int, restarts: bool
) -> None:
    worker = await site.start_worker("-c", "100")
    retrying = [await _enqueue(site, "work_again", 0.0, 1, 3.0) for _ in range(5)]
    running = [await _enqueue(site, "work", 60.0) for _ in range(5)]
    await _until_started(site, [*retrying, *running])
    await _until_state(site, retrying, "RETRY")
    # While they run, or as their worker dies: the mark outlives it.
    ends = [None, "worker SIGKILL", "worker SIGSTOP"][number % 3]
    cancelled_at = {task_id: time.time() for task_id in retrying}
    await _cancel(site, retrying, figures)
    if ends is None:
        await _stop_running(site, running, cancelled_at, figures)
        worker.terminate()
        await asyncio.to_thread(worker.wait, 40)
    else:
        figures.faults[ends] += 1
        await _cancel_as_it_dies(
            site, worker, running, cancelled_at, figures, gently=ends == "worker SIGSTOP"
        )
    # Nobody is there to hear of these.
    waiting = [await _enqueue(site, "work", 0.0) for _ in range(10)]
    delayed = [await _enqueue(site, "work", 0.0, countdown=chance.uniform(1.0, 3.0)) for _ in range(10)]
    spared = [await _enqueue(site, "work", 0.0, countdown=chance.choice([None, 2.0])) for _ in range(10)]
    cancelled_at |= dict.fromkeys([*waiting, *delayed], time.time())
    await _cancel(site, [*waiting, *delayed], figures)
    if restarts:
        await _restart_servers(site, figures)
    others = await asyncio.gather(*(site.start_worker("-c", "100") for _ in range(2)))
    asked = [*retrying, *running, *waiting, *delayed, *spared]
    left = await wait_for_outcomes(site, asked, 30)
    await asyncio.sleep(3.0)  # what is cancelled and delayed would come until then
    figures.enqueued += len(asked)
    figures.lost += [f"{task_id}: {state}" for task_id, state in left.items()]
    await _check(site, cancelled_at, spared, figures)
    for each in others:
        each.terminate()
    await asyncio.gather(*(asyncio.to_thread(each.wait, 40) for each in others))


async def _check(site: Site, cancelled_at: dict[str, float], spared: list[str], figures: Figures) -> None:
    audit = await asyncio.to_thread(site.audit)
    records = await site.client.store.get([*cancelled_at, *spared])
    for task_id, at in cancelled_at.items():
        if task_id in records and records[task_id].state != "REVOKED":
            figures.broken.append(f"{task_id} was cancelled, and is {records[task_id].state}")
        if any(start.at > at for start in audit.starts[task_id]):
            figures.broken.append(f"{task_id} was started after it was cancelled")
    for task_id in spared:
        if task_id in records and records[task_id].state != "SUCCESS":
            figures.broken.append(f"{task_id} was not cancelled, and is {records[task_id].state}")


async def _stop_running(
    site: Site, running: list[str], cancelled_at: dict[str, float], figures: Figures
) -> None:
    began = time.time()
    cancelled_at |= dict.fromkeys(running, began + 0.5)
    await _cancel(site, running, figures)
    await _until_stopped(site, running, figures)
    figures.recovery = max(figures.recovery or 0.0, time.time() - began)


async def _until_stopped(site: Site, running: list[str], figures: Figures) -> None:
    try:
        async with asyncio.timeout(_STOPS):
            while not set(running) <= {
                line.task_id for line in (await asyncio.to_thread(site.audit)).lines if line.what == "stop"
            }:
                await asyncio.sleep(0.02)
    except TimeoutError:
        figures.broken.append(f"running tasks did not stop within {_STOPS:g} s")


async def _cancel_as_it_dies(
    site: Site,
    worker: Process,
    running: list[str],
    cancelled_at: dict[str, float],
    figures: Figures,
    *,
    gently: bool,
) -> None:
    """Cancel what a worker runs that hears nothing any more, and kill it."""
    if gently:
        worker.signal(19)
    else:
        worker.kill()
    site.deaths.append(Death(time.time(), worker.pid))
    await _cancel(site, running, figures)
    cancelled_at |= dict.fromkeys(running, time.time())
    if gently:
        worker.signal(18)
        # It has been told while it heard nothing. Else the tasks would go back at the end of its grace period.
        await _until_stopped(site, running, figures)
        await asyncio.to_thread(worker.terminate)
        await asyncio.to_thread(worker.wait, 60)


async def _restart_servers(site: Site, figures: Figures) -> None:
    for server in {site.broker_server, site.store_server} - {None}:
        assert server is not None
        figures.faults["server SIGKILL"] += 1
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)


async def _cancel(site: Site, task_ids: list[str], figures: Figures) -> None:
    figures.faults["cancel"] += len(task_ids)
    known = await asyncio.gather(*(site.client.handle(task_id).cancel() for task_id in task_ids))
    if not all(known):
        figures.broken.append(f"{known.count(False)} cancels were refused")


async def _enqueue(site: Site, name: str, *args: float, countdown: float | None = None) -> str:
    options = {} if countdown is None else {"countdown": countdown}
    return (await site.client.enqueue(f"auditor.{name}", args, **options)).id


async def _until_started(site: Site, task_ids: list[str]) -> None:
    async with asyncio.timeout(30):
        while not set(task_ids) <= (await asyncio.to_thread(site.audit)).starts.keys():
            await asyncio.sleep(0.05)


async def _until_state(site: Site, task_ids: list[str], state: str) -> None:
    async with asyncio.timeout(30):
        while any(each.state != state for each in (await site.client.store.get(task_ids)).values()):
            await asyncio.sleep(0.05)
