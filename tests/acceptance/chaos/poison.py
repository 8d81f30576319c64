"""Promise 3: what kills its worker ends as a dead letter, its record says so, and it can be replayed in three ways."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import httpx
from tests.acceptance.chaos.figures import Figures
from tests.acceptance.chaos.reckoning import measured, wait_for_outcomes
from tests.acceptance.chaos.site import Site
from tests.acceptance.processes import Process

__all__ = ["poison_workers"]

Replay = Callable[[Site, str, str], Awaitable[bool]]


async def poison_workers(
    site: Site,
    chance: random.Random,
    *,
    rounds: int,
    lease: float,
    limit: int,
    ways: Sequence[str] = ("python", "command", "http"),
) -> Figures:
    """Enqueue tasks that kill their worker, replace each that died, cure the tasks, and replay their messages.

    ``limit`` is ``celeriac_delivery_limit``; ``lease`` is in seconds; ``ways`` are among ``WAYS``.
    """
    site.configure(celeriac_lease=lease, celeriac_delivery_limit=limit)
    figures = Figures(3, site.broker)
    with measured(figures):
        async with site.client:
            url = await site.start_api()
            hospital = _Hospital(site, figures)
            try:
                await hospital.open()
                for number in range(rounds):
                    for way in ways:
                        cure = site.folder / f"cure-{number}-{way}"
                        await _one_round(site, figures, url, cure, way, limit)
                    await _check_neighbours(site, figures, chance)
                    if site.expired:
                        break
            finally:
                await hospital.close()
    return figures


class _Hospital:
    """Keeps two workers alive."""

    def __init__(self, site: Site, figures: Figures) -> None:
        self._site = site
        self._figures = figures
        self._tending: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        workers = await asyncio.gather(*(self._site.start_worker("-c", "10") for _ in range(2)))
        self._tending = [asyncio.create_task(self._tend(worker)) for worker in workers]

    async def _tend(self, worker: Process) -> None:
        while True:
            while worker.running:
                await asyncio.sleep(0.05)
            self._figures.faults["worker killed by its task"] += 1
            worker = await self._site.start_worker("-c", "10")

    async def close(self) -> None:
        for task in self._tending:
            task.cancel()
        for done in await asyncio.gather(*self._tending, return_exceptions=True):
            if isinstance(done, Exception):
                raise done


async def _one_round(site: Site, figures: Figures, url: str, cure: Path, way: str, limit: int) -> None:
    task_id = (await site.client.enqueue("auditor.poison", (str(cure),))).id
    figures.enqueued += 1
    letter = await _expect_dead(site, figures, task_id, limit)
    if letter is None:
        return
    await asyncio.to_thread(cure.touch)
    if not await WAYS[way](site, letter, url):
        figures.broken.append(f"replay by {way} did not find the dead letter of {task_id}")
    figures.faults[f"replay by {way}"] += 1
    state = await _until_success(site, task_id)
    if state != "SUCCESS" or len(site.audit().starts[task_id]) != limit + 1:
        figures.broken.append(f"{task_id}, replayed by {way}, is {state}")
    if await _letter_of(site, task_id) is not None:
        figures.broken.append(f"{task_id}, replayed by {way}, is still a dead letter")


async def _expect_dead(site: Site, figures: Figures, task_id: str, starts: int) -> str | None:
    """Wait until the task is a dead letter, after so many starts in all. Returns the letter's id."""
    try:
        async with asyncio.timeout(90):
            while (letter := await _letter_of(site, task_id)) is None:
                await asyncio.sleep(0.1)
    except TimeoutError:
        figures.lost.append(f"{task_id} has not become a dead letter")
        return None
    record = await site.client.handle(task_id).record()
    if record.state != "FAILURE" or "without an outcome" not in str(record.error):
        figures.broken.append(
            f"{task_id} is a dead letter, and its record says {record.state}: {record.error}"
        )
    if (found := len(site.audit().starts[task_id])) != starts:
        figures.broken.append(f"{task_id} was started {found} times, not {starts}")
    return letter


async def _letter_of(site: Site, task_id: str) -> str | None:
    letters = await site.client.dead_letters(limit=1000)
    return next((letter.id for letter in letters if letter.task_id == task_id), None)


async def _until_success(site: Site, task_id: str) -> str:
    try:
        async with asyncio.timeout(20):
            while (state := await site.client.handle(task_id).state()) != "SUCCESS":
                await asyncio.sleep(0.05)
    except TimeoutError:
        pass
    return state


async def _check_neighbours(site: Site, figures: Figures, chance: random.Random) -> None:
    """What is enqueued beside poison runs; it may have been in the same worker."""
    handles = [await site.client.enqueue("auditor.work", (chance.random() / 10,)) for _ in range(20)]
    figures.enqueued += len(handles)
    left = await wait_for_outcomes(site, [handle.id for handle in handles], 30)
    figures.lost += [f"{task_id}: {state}" for task_id, state in left.items()]


async def _by_python(site: Site, letter: str, _url: str) -> bool:
    return await site.client.replay_dead_letters([letter]) == 1


async def _by_command(site: Site, letter: str, _url: str) -> bool:
    shown = site.run("celeriac", "dead-letters", "list", "-A", "auditor", "--json")
    assert await asyncio.to_thread(shown.wait) == 0, shown.output
    letters = [json.loads(line) for line in shown.output.splitlines() if line.startswith("{")]
    replayed = site.run("celeriac", "dead-letters", "replay", "-A", "auditor", letter)
    code = await asyncio.to_thread(replayed.wait)
    return code == 0 and letter in [each["id"] for each in letters]


async def _by_http(_site: Site, letter: str, url: str) -> bool:
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        listed = (await http.get("/tasks/dead-letters")).json()["items"]
        answer = await http.post("/tasks/dead-letters/replay", json={"ids": [letter]})
        return letter in [each["id"] for each in listed] and answer.json() == {"replayed": 1}


WAYS: dict[str, Replay] = {"python": _by_python, "command": _by_command, "http": _by_http}
