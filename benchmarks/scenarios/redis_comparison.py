"""20,000 jobs, 10 workers: the public comparison of Python's task queues, with its rules, on this machine.

https://github.com/steventen/python_queue_benchmark: one process enqueues, one job after the other; then ten workers are
started, processes or threads as each system has them, and the time runs from the command that starts them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.figures import Figure
from benchmarks.processes import run_probe
from benchmarks.redis_server import redis_running
from benchmarks.report import Row
from benchmarks.scale import Scale
from benchmarks.scenarios.draining import Drained, drain
from benchmarks.scenarios.rounds import Contender, Rounds
from benchmarks.systems import NATIVE, NATIVE_BARE, PEERS, STOCK_RESULTS, WorkerOptions

__all__ = ["measure"]

_NAME = "redis-comparison"

_SLOTS = WorkerOptions(concurrency=10)


@dataclass(frozen=True, slots=True)
class _Run:
    enqueueing: float
    drained: Drained


def measure(scale: Scale) -> Iterator[Row]:
    """Every system once: stock Celery with results, as there; ten slots of one process for those that have slots."""
    count = scale.jobs
    contenders = [
        Contender(NATIVE, count, _SLOTS, ours=True),
        Contender(NATIVE_BARE, count, _SLOTS, ours=True),
        *(
            Contender(STOCK_RESULTS, count, WorkerOptions(pool=pool, concurrency=10))
            for pool in ("threads", "prefork")
        ),
        *(Contender(peer, count, peer.ten) for peer in PEERS),
    ]
    rounds: Rounds[_Run] = Rounds(_NAME, contenders)
    with redis_running() as url:
        rounds.run(1, lambda contender: _run(contender, url))
    for contender, runs in rounds:
        yield from _rows(contender, runs)
    yield from rounds.skipped()


def _run(contender: Contender, url: str) -> _Run:
    system = contender.system
    with system.at(url) as place:
        arguments = {"app": system.app, "count": contender.count, "requests": 1, "warm_up": 0}
        enqueued = run_probe("publish", arguments, place.env, system.python)
        place.filled()
        return _Run(enqueued["seconds"], drain(system, place, contender.count, contender.options))


def _rows(contender: Contender, runs: list[_Run]) -> Iterator[Row]:
    name = contender.system.name
    jobs = f"{contender.count:,} jobs"
    yield Figure(_NAME, name, f"{jobs}: enqueue", "s", [run.enqueueing for run in runs])
    what = f"{jobs}: finish, {contender.options}"
    yield Figure(_NAME, name, what, "s", [run.drained.since_command for run in runs])
    yield Figure(
        _NAME, name, f"{jobs}: finish, without the start", "s", [run.drained.seconds for run in runs]
    )
