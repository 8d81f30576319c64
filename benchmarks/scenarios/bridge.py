"""kombu's transports: what a no-op task costs one worker of ours, and one of stock Celery's."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.figures import Figure, Skipped, at_most
from benchmarks.report import Row
from benchmarks.scale import Scale
from benchmarks.scenarios.draining import Drained, drain
from benchmarks.scenarios.rounds import Contender, Rounds, ratio
from benchmarks.systems.bridge import BRIDGED
from benchmarks.systems.bridge_queues import MakeQueue, Unavailable, serving

__all__ = ["measure"]

_NAME = "bridge-throughput"


def measure(scale: Scale) -> Iterator[Row]:
    """No-op tasks in a queue: everybody in turn; the ratios are taken round by round."""
    for transport in BRIDGED:
        try:
            with serving(transport) as make:
                yield from _measured(transport, make, scale)
        except Unavailable as reason:
            yield Skipped(_NAME, transport, str(reason))


def _measured(transport: str, make: MakeQueue, scale: Scale) -> Iterator[Row]:
    bare, records, stock = BRIDGED[transport]
    rounds: Rounds[Drained] = Rounds(
        _NAME,
        [
            Contender(bare, scale.bridge_queued, ours=True),
            Contender(records, scale.bridge_queued, ours=True),
            *(
                Contender(stock, scale.bridge_stock_queued, options)
                for options in stock.settings[: scale.stock_settings]
            ),
        ],
    )
    rounds.run(scale.runs, lambda contender: _drain(contender, make))
    for system in (bare, records, stock):
        yield from rounds.rows(system, _cheapness, _rows)
    yield from rounds.skipped()
    theirs = rounds.best(_cheapness, stock)
    what = "as dear per task as stock Celery's threads"
    yield from ratio(_NAME, what, rounds.of(bare), theirs, _cost, at_most(1.0))
    yield from ratio(_NAME, what, rounds.of(records), theirs, _cost, at_most(1.0))


def _drain(contender: Contender, make: MakeQueue) -> Drained:
    with contender.system.at(make) as place:
        place.fill("noop", contender.count, 1)
        return drain(contender.system, place, contender.count, contender.options)


def _cost(run: Drained) -> float:
    return run.cpu_seconds / run.count * 1e6


def _cheapness(run: Drained) -> float:
    return 1 / _cost(run)


def _rows(contender: Contender, runs: list[Drained], note: str) -> Iterator[Row]:
    name = contender.system.name
    note = f"{contender.count:,} tasks in each run{note and ', '}{note}"
    yield Figure(_NAME, name, contender.worker, "tasks/s", [run.rate for run in runs], note=note)
    yield Figure(_NAME, name, "processor time of the worker", "µs/task", [_cost(run) for run in runs])
