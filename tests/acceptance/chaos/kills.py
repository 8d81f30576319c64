"""Promise 1: what was accepted comes to an outcome, whichever single process or connection dies, at any instruction."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from tests.acceptance.chaos.audit import NOTICES, Death
from tests.acceptance.chaos.figures import Figures
from tests.acceptance.chaos.network import FAULTS, networks
from tests.acceptance.chaos.reckoning import fill, measured
from tests.acceptance.chaos.site import Site
from tests.acceptance.processes import Process
from tests.services import Proxy
from tests.services.process import ServerProcess

__all__ = ["kill_anything"]

#: Seconds after which RabbitMQ takes the next step with a delayed message once more, if its end came in the middle:
#: ``dead_letter_worker_publisher_confirm_timeout``.
_HOP = 180.0

#: How often what is chosen, to a worker's death.
_WEIGHTS = {
    "worker SIGKILL": 10,
    "publisher SIGKILL": 4,
    "worker SIGSTOP": 2,
    "server SIGKILL": 2,
    "server restart": 1,
    "records SIGKILL": 1,
    **dict.fromkeys((f"{role}: {fault}" for role in ("broker", "records") for fault in FAULTS), 1),
}


@dataclass
class _Crew:
    """The processes that run now."""

    site: Site
    chance: random.Random
    rate: float
    lease: float
    networks: Mapping[str, Proxy]
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
        with (self.site.folder / "faults.txt").open("a") as file:
            file.write(f"{time.time():.6f} {fault}\n")
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
            case _:
                await self.disturb(*fault.split(": "))

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
        # The end of each connection is the end of what RabbitMQ had given to it. Leases outlive a server that is back
        # before they end, and the records' server has nobody's deliveries.
        away = time.time() - began
        if server is self.site.broker_server and (self.site.broker == "rabbitmq" or away > self.lease / 2):
            self.site.deaths.append(Death(began, None, time.time()))

    async def disturb(self, role: str, fault: str) -> None:
        """Do to a network what it does, for up to two leases and a half if it lasts."""
        began = time.time()
        seconds = self.lease * self.chance.uniform(0.2, 2.5)
        await FAULTS[fault](self.networks[role], self.chance, seconds)
        if self._frees_tasks(role, fault, seconds):
            self.site.deaths.append(Death(began, None, time.time() + NOTICES))

    def _frees_tasks(self, role: str, fault: str, seconds: float) -> bool:
        """Whether workers may lose to others what they run: RabbitMQ gives to connections, all others for a lease."""
        if role != "broker" or fault == "slow":
            return False
        return self.site.broker == "rabbitmq" or (not fault.endswith("cut") and seconds > self.lease / 2)

    async def end(self) -> None:
        """Have the publishers finish what they began."""
        for publisher in self.publishers:
            publisher.terminate()
        for publisher in self.publishers:
            await asyncio.to_thread(publisher.wait, 30)


def _possible(site: Site, networks: Collection[str]) -> set[str]:
    """The faults that there can be."""
    subjects = {"worker", "publisher", *(f"{role}:" for role in networks)}
    if site.broker_server is not None:
        subjects.add("server")
    if site.broker_server is not site.store_server:
        subjects.add("records")
    return {fault for fault in _WEIGHTS if fault.split()[0] in subjects}


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
    """Kill and pause workers, publishers and servers under load, and disturb networks, one at a time.

    ``crew_of`` is how many workers and publishers there are; ``spared`` are faults that do not happen; ``lease`` is in
    seconds, ``rate`` tasks a second of each publisher.
    """
    site.configure(celeriac_lease=lease, celeriac_delivery_limit=100)
    figures = Figures(1, site.broker)
    with measured(figures):
        async with site.client, networks(site) as proxies:
            crew = _Crew(site, chance, rate, lease, proxies, faults=figures.faults)
            await crew.begin(*crew_of)
            for fault in _order(chance, rounds, _possible(site, proxies) - set(spared)):
                await asyncio.sleep(chance.random())
                await crew.strike(fault)
                if site.expired:
                    break
            await crew.end()
            patience = lease + (_HOP if site.broker == "rabbitmq" else 0.0) + 20.0
            await fill(figures, site, patience=patience, deaths=site.deaths)
    return figures


def _order(chance: random.Random, rounds: int, faults: Collection[str]) -> list[str]:
    """One of each comes up in any run that is long enough; then by chance."""
    weights = {fault: weight for fault, weight in _WEIGHTS.items() if fault in faults}
    order = chance.sample(list(weights), len(weights))[:rounds]
    return order + chance.choices(list(weights), list(weights.values()), k=rounds - len(order))
