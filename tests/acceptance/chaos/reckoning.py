"""The end of an attack: wait until all that was accepted has come to an outcome, and count."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from tests.acceptance.chaos.audit import Audit, Death
from tests.acceptance.chaos.figures import Figures
from tests.acceptance.chaos.site import Site

from celeriac.errors import CeleriacError

__all__ = ["fill", "measured", "undecided", "wait_for_outcomes"]

#: Ids in one question to the store.
_PAGE = 500


async def undecided(site: Site, task_ids: Iterable[str]) -> dict[str, str]:
    """Which of these have neither ended nor become dead letters, and the state of each."""
    ids = list(task_ids)
    found: dict[str, str] = {}
    for start in range(0, len(ids), _PAGE):
        page = ids[start : start + _PAGE]
        records = await site.client.store.get(page)
        found |= {
            task_id: records[task_id].state if task_id in records else "no record"
            for task_id in page
            if task_id not in records or not records[task_id].ready
        }
    if found:
        dead = {letter.task_id for letter in await site.client.broker.dead_letters(limit=10_000)}
        found = {task_id: state for task_id, state in found.items() if task_id not in dead}
    return found


async def wait_for_outcomes(site: Site, task_ids: Collection[str], patience: float) -> dict[str, str]:
    """Wait until each has an outcome, for as long as that makes headway within ``patience`` seconds.

    Returns those that have none, with their states: they are lost.
    """
    left: dict[str, str] = dict.fromkeys(task_ids, "")
    until = time.monotonic() + patience
    while left and time.monotonic() < until:
        before = len(left)
        with contextlib.suppress(CeleriacError):  # a server that is about to return
            left = await undecided(site, left)
        if len(left) < before:
            until = time.monotonic() + patience
        if left:
            await asyncio.sleep(0.2)
    return left


async def fill(figures: Figures, site: Site, *, patience: float, deaths: Iterable[Death]) -> Audit:
    """Wait for the outcomes of all that was accepted, and write into ``figures`` what the logs say."""
    deaths = list(deaths)
    audit = await asyncio.to_thread(site.audit)
    left = await wait_for_outcomes(site, audit.accepted, patience)
    audit = await asyncio.to_thread(site.audit)
    figures.enqueued += len(audit.accepted)
    figures.lost += [
        f"{task_id}: {state}, {len(audit.starts[task_id])} starts, {len(audit.ends[task_id])} ends"
        for task_id, state in left.items()
    ]
    figures.doubled += audit.doubled(deaths)
    figures.repeated += len(audit.repeated())
    figures.lost += await _unworked(site, audit)
    figures.broken += await _unfilled(site, audit)
    figures.broken += await _failed(site, audit)
    if recoveries := audit.recoveries(deaths):
        figures.recovery = max([*recoveries, figures.recovery or 0.0])
    return audit


async def _unworked(site: Site, audit: Audit) -> list[str]:
    """Tasks whose record says SUCCESS, and that never came to their end."""
    ids = [task_id for task_id in audit.accepted if task_id not in audit.ends]
    records = await site.client.store.get(ids) if ids else {}
    return [
        f"{task_id}: SUCCESS without an end" for task_id, each in records.items() if each.state == "SUCCESS"
    ]


async def _unfilled(site: Site, audit: Audit) -> list[str]:
    """Tasks whose records do not say what was called, although who enqueued them has lived on to write it."""
    pids = {line.pid for line in audit.lines if line.what == "closed"}
    ids = [task_id for task_id, line in audit.accepted.items() if line.pid in pids]
    found: list[str] = []
    for start in range(0, len(ids), _PAGE):
        records = await site.client.store.get(ids[start : start + _PAGE])
        found += [
            f"the record of {task_id} has no arguments"
            for task_id, each in records.items()
            if each.args is None
        ]
    return found


async def _failed(site: Site, audit: Audit) -> list[str]:
    """Tasks that have come to another outcome than theirs: of those that are counted here none fails by itself."""
    ids, found = list(audit.accepted), []
    for start in range(0, len(ids), _PAGE):
        records = await site.client.store.get(ids[start : start + _PAGE])
        found += [
            f"{task_id} is {each.state}: {each.error}"
            for task_id, each in records.items()
            if each.ready and each.state != "SUCCESS"
        ]
    dead = await site.client.broker.dead_letters(limit=10_000)
    return found + [f"{letter.task_id} is a dead letter: {letter.reason}" for letter in dead]


@dataclass
class measured:  # noqa: N801 - used as a context
    """Counts the seconds of an attack into its figures."""

    figures: Figures
    _began: float = field(default=0.0, init=False)

    def __enter__(self) -> Figures:
        self._began = time.monotonic()
        return self.figures

    def __exit__(self, *_: object) -> None:
        self.figures.seconds += time.monotonic() - self._began
