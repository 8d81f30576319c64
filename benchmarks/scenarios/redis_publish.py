"""How many tasks a process on Redis publishes for one second of its processor's time, from many requests at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.figures import Figure, at_least
from benchmarks.processes import run_probe
from benchmarks.redis_server import redis_running
from benchmarks.report import Row
from benchmarks.scale import Scale
from benchmarks.scenarios.rounds import Contender, Rounds, ratio
from benchmarks.systems import NATIVE, NATIVE_BARE, PEERS, STOCK, STOCK_RESULTS

__all__ = ["measure"]

_NAME = "redis-publish"
_REQUESTS = 64


@dataclass(frozen=True, slots=True)
class _Published:
    count: int
    seconds: float
    cpu_seconds: float


def measure(scale: Scale) -> Iterator[Row]:
    """Everybody in turn on one server, one coroutine for each request, all on one loop."""
    # Once each: what is published for a "def" is published for an "async def".
    peers = [peer for peer in PEERS if peer.asynchronous]
    contenders = [
        Contender(NATIVE_BARE, scale.enqueued, ours=True),
        Contender(NATIVE, scale.enqueued, ours=True),
        *(Contender(system, scale.delayed) for system in (STOCK, STOCK_RESULTS)),
        *(Contender(peer, scale.redis_peer_published) for peer in peers),
    ]
    rounds: Rounds[_Published] = Rounds(_NAME, contenders)
    with redis_running() as url:
        rounds.run(scale.runs, lambda contender: _run(contender, url))
    for system in (NATIVE_BARE, NATIVE, STOCK, STOCK_RESULTS, *peers):
        yield from rounds.rows(system, _per_cpu_second, _rows)
    yield from rounds.skipped()
    fastest = rounds.best(_per_cpu_second, *peers)
    for ours, stock in ((NATIVE_BARE, STOCK), (NATIVE, STOCK_RESULTS)):
        # What is asked for is asked of publishing; a record with it is more than any of them does.
        barred = ours is NATIVE_BARE
        mine, theirs = rounds.of(ours), rounds.of(stock)
        what = "per processor second: as many as .delay()"
        yield from ratio(_NAME, what, mine, theirs, _per_cpu_second, at_least(10.0) if barred else None)
        what = "per processor second: as many as the fastest peer"
        yield from ratio(_NAME, what, mine, fastest, _per_cpu_second, at_least(4.0) if barred else None)


def _run(contender: Contender, url: str) -> _Published:
    with contender.system.at(url) as place:
        arguments = {"app": contender.system.app, "count": contender.count, "requests": _REQUESTS}
        measured = run_probe("publish", arguments, place.env, contender.system.python)
        return _Published(contender.count, measured["seconds"], measured["cpu_seconds"])


def _per_cpu_second(run: _Published) -> float:
    return run.count / run.cpu_seconds


def _rows(contender: Contender, runs: list[_Published], note: str) -> Iterator[Row]:
    name = contender.system.name
    what = f"{_REQUESTS} requests, for a second of the processor"
    yield Figure(_NAME, name, what, "tasks", [_per_cpu_second(run) for run in runs], note=note)
    rates = [run.count / run.seconds for run in runs]
    yield Figure(_NAME, name, f"{_REQUESTS} requests, by the clock", "tasks/s", rates)
