"""Promise 1: what was accepted comes to an outcome, whichever single process dies, at any instruction."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from tests.acceptance.chaos.audit import Death
from tests.acceptance.chaos.figures import Figures
from tests.acceptance.chaos.reckoning import fill, measured
from tests.acceptance.chaos.site import Site
from tests.acceptance.processes import Process
from tests.services.process import ServerProcess

__all__ = ["kill_anything"]

#: How often what is chosen, to a worker's death.
_WEIGHTS = {
    "worker SIGKILL": 10,
    "publisher SIGKILL": 4,
    "worker SIGSTOP": 2,
    "server SIGKILL": 2,
    "server restart": 1,
    "records SIGKILL": 1,
}


@dataclass
class _Crew:
    """The processes that run now."""

    site: Site
    chance: random.Random
    rate: float
    lease: float
    workers: list[Process] = field(default_factory=list)
    publishers: list[Process] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)

    async def begin(self, workers: int, publishers: int) -> None:
        """Start so many of each."""
        await asyncio.gather(
            *(self.add_worker() for _ in range(workers)), *(self.add_publisher() for _ in range(publishers))
        )

    async def add_worker(self) -> None:
        self.workers.append(await self.site.start_worker("-c", "20"))

    async def add_publisher(self) -> None:
        seed = self.chance.random()
        self.publishers.append(await self.site.start_publisher(seed, rate=self.rate, longest=0.5))

    async def strike(self, fault: str) -> None:
        """Inject a fault, and have what it took replaced."""
        self.faults[fault] += 1
        match fault:
            case "worker SIGKILL":
                worker = self.workers.pop(self.chance.randrange(len(self.workers)))
                self.kill(worker)
                await self.add_worker()
            case "publisher SIGKILL":
                self.publishers.pop(self.chance.randrange(len(self.publishers))).kill()
                await self.add_publisher()
            case "worker SIGSTOP":
                await self.pause(self.chance.choice(self.workers))
            case "server SIGKILL" | "server restart":
                assert self.site.broker_server is not None
                await self.restart(self.site.broker_server, gently=fault == "server restart")
            case "records SIGKILL":
                assert self.site.store_server is not None
                await self.restart(self.site.store_server, gently=False)

    def kill(self, worker: Process) -> None:
        worker.kill()
        self.site.deaths.append(Death(time.time(), worker.pid))

    async def pause(self, worker: Process) -> None:
        """Longer than its leases last."""
        began = time.time()
        worker.signal(signal.SIGSTOP)
        await asyncio.sleep(self.lease * self.chance.uniform(0.5, 2.5))
        worker.signal(signal.SIGCONT)
        self.site.deaths.append(Death(began, worker.pid, time.time()))

    async def restart(self, server: ServerProcess, *, gently: bool) -> None:
        began = time.time()
        await asyncio.to_thread(server.stop if gently else server.kill)
        await asyncio.to_thread(server.start)
        # The end of each connection is the end of what RabbitMQ had given to it; leases outlive their server.
        self.site.deaths.append(Death(began, None, time.time()))

    async def end(self) -> None:
        """Have the publishers finish what they began."""
        for publisher in self.publishers:
            publisher.terminate()
        for publisher in self.publishers:
            await asyncio.to_thread(publisher.wait, 30)


def _weights(site: Site) -> dict[str, int]:
    weights = dict(_WEIGHTS)
    if site.broker_server is None:
        weights = {
            name: weight for name, weight in weights.items() if name.startswith(("worker", "publisher"))
        }
    elif site.broker_server is site.store_server:
        del weights["records SIGKILL"]
    return weights


async def kill_anything(
    site: Site,
    chance: random.Random,
    *,
    rounds: int,
    lease: float,
    rate: float = 25.0,
    crew_of: tuple[int, int] = (3, 2),
    spared: Collection[str] = (),
) -> Figures:
    """Kill and pause workers, publishers and servers under load, one at a time and at random instants.

    ``crew_of`` is how many workers and publishers there are; ``spared`` are faults that do not happen; ``lease`` is in
    seconds, ``rate`` tasks a second of each publisher.
    """
    site.configure(celeriac_lease=lease, celeriac_delivery_limit=100)
    figures = Figures(1, site.broker)
    crew = _Crew(site, chance, rate, lease, faults=figures.faults)
    weights = {fault: weight for fault, weight in _weights(site).items() if fault not in spared}
    with measured(figures):
        async with site.client:
            await crew.begin(*crew_of)
            # One of each comes up in any run, however short; then by chance.
            order = chance.sample(list(weights), len(weights))[:rounds]
            order += chance.choices(list(weights), list(weights.values()), k=rounds - len(order))
            for fault in order:
                await asyncio.sleep(chance.random())
                await crew.strike(fault)
                if site.expired:
                    break
            await crew.end()
            await fill(figures, site, patience=lease + 20, deaths=site.deaths)
    return figures
