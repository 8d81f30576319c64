"""No-op tasks in a queue on Redis: how many a second one worker process of each system runs."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.figures import Figure, at_least
from benchmarks.redis_server import redis_running
from benchmarks.report import Row
from benchmarks.scale import Scale
from benchmarks.scenarios.draining import Drained, drain
from benchmarks.scenarios.rounds import Contender, Rounds, ratio
from benchmarks.systems import NATIVE, NATIVE_BARE, PEERS, STOCK, STOCK_RESULTS

__all__ = ["measure"]

_NAME = "redis-throughput"


def measure(scale: Scale) -> Iterator[Row]:
    """Everybody in turn on one server; the ratios are taken round by round."""
    settings = scale.stock_settings
    contenders = [
        Contender(NATIVE_BARE, scale.redis_queued, ours=True),
        Contender(NATIVE, scale.redis_queued, ours=True),
        *(Contender(STOCK, scale.redis_stock_queued, options) for options in STOCK.settings[:settings]),
        *(
            Contender(STOCK_RESULTS, scale.redis_stock_queued, options)
            for options in STOCK_RESULTS.settings[:settings]
        ),
        *(Contender(peer, scale.redis_peer_queued) for peer in PEERS),
    ]
    rounds: Rounds[Drained] = Rounds(_NAME, contenders)
    with redis_running() as url:
        rounds.run(scale.runs, lambda contender: _run(contender, url))
    for system in (NATIVE_BARE, NATIVE, STOCK, STOCK_RESULTS, *PEERS):
        yield from rounds.rows(system, _rate, _rows)
    yield from rounds.skipped()
    bare, full = rounds.of(NATIVE_BARE), rounds.of(NATIVE)
    stock, stock_results = rounds.best(_rate, STOCK), rounds.best(_rate, STOCK_RESULTS)
    asynchronous = rounds.best(_rate, *(peer for peer in PEERS if peer.asynchronous))
    plain = rounds.best(_rate, *(peer for peer in PEERS if not peer.asynchronous))
    what = "as fast as stock Celery's best pool"
    yield from ratio(_NAME, what, bare, stock, _rate, at_least(20.0))
    yield from ratio(_NAME, what, full, stock_results, _rate, at_least(10.0))
    yield from ratio(
        _NAME, "as fast as the fastest peer, async def", bare, asynchronous, _rate, at_least(6.0)
    )
    yield from ratio(_NAME, "as fast as the fastest peer that runs def", bare, plain, _rate)


def _run(contender: Contender, url: str) -> Drained:
    with contender.system.at(url) as place:
        place.fill("noop", contender.count, 1)
        return drain(contender.system, place, contender.count, contender.options)


def _rate(run: Drained) -> float:
    return run.rate


def _rows(contender: Contender, runs: list[Drained], note: str) -> Iterator[Row]:
    name = contender.system.name
    note = f"{contender.count:,} tasks in each run{note and ', '}{note}"
    yield Figure(_NAME, name, contender.worker, "tasks/s", [run.rate for run in runs], note=note)
    cpu = [run.cpu_seconds / run.count * 1e6 for run in runs]
    yield Figure(_NAME, name, "processor time of the worker", "µs/task", cpu)
