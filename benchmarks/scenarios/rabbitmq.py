"""RabbitMQ, in quorum queues and with publisher confirms: what one worker runs, and what 64 requests publish."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass

from tests.services.rabbitmq import running_rabbitmq

from benchmarks.figures import Figure, at_least
from benchmarks.processes import run_probe
from benchmarks.report import Row
from benchmarks.scale import Scale
from benchmarks.scenarios.draining import Drained, drain
from benchmarks.scenarios.rounds import Contender, Rounds, ratio
from benchmarks.systems.rabbitmq import RABBITMQ, RABBITMQ_RECORDS, STOCK_RABBITMQ, STOCK_RABBITMQ_THREADS

__all__ = ["measure", "measure_publishing"]

_WORKING = "rabbitmq-throughput"
_PUBLISHING = "rabbitmq-publish"
_REQUESTS = 64


def measure(scale: Scale) -> Iterator[Row]:
    """No-op tasks in a queue: everybody in turn on one server; the ratios are taken round by round."""
    rounds: Rounds[Drained] = Rounds(
        _WORKING,
        [
            Contender(RABBITMQ, scale.queued, ours=True),
            Contender(RABBITMQ_RECORDS, scale.queued, ours=True),
            *(
                Contender(STOCK_RABBITMQ, scale.rabbitmq_stock_queued, options)
                for options in STOCK_RABBITMQ.settings[: scale.stock_settings]
            ),
        ],
    )
    if RABBITMQ.unavailable() is None:
        with running_rabbitmq() as server:
            rounds.run(scale.runs, lambda contender: _drain(contender, server.url))
    for system in (RABBITMQ, RABBITMQ_RECORDS, STOCK_RABBITMQ):
        yield from rounds.rows(system, _rate, _drained_rows)
    yield from rounds.skipped()
    what = "as fast as stock Celery's best pool"
    stock = rounds.best(_rate, STOCK_RABBITMQ)
    yield from ratio(_WORKING, what, rounds.of(RABBITMQ), stock, _rate, at_least(2.0))
    yield from ratio(_WORKING, what, rounds.of(RABBITMQ_RECORDS), stock, _rate)


def _drain(contender: Contender, url: str) -> Drained:
    with contender.system.at(url) as place:
        place.fill("noop", contender.count, 1)
        return drain(contender.system, place, contender.count, contender.options)


def _rate(run: Drained) -> float:
    return run.rate


def _drained_rows(contender: Contender, runs: list[Drained], note: str) -> Iterator[Row]:
    name = contender.system.name
    note = f"{contender.count:,} tasks in each run{note and ', '}{note}"
    yield Figure(_WORKING, name, contender.worker, "tasks/s", [run.rate for run in runs], note=note)
    cpu = [run.cpu_seconds / run.count * 1e6 for run in runs]
    yield Figure(_WORKING, name, "processor time of the worker", "µs/task", cpu)


@dataclass(frozen=True, slots=True)
class _Published:
    count: int
    seconds: float
    cpu_seconds: float


def measure_publishing(scale: Scale) -> Iterator[Row]:
    """64 requests at once, each waiting for the confirmation of its own task."""
    systems = {
        RABBITMQ: scale.enqueued,
        RABBITMQ_RECORDS: scale.enqueued,
        STOCK_RABBITMQ: scale.delayed,
        STOCK_RABBITMQ_THREADS: scale.delayed,
    }
    contenders = [
        Contender(system, count, ours=system in (RABBITMQ, RABBITMQ_RECORDS))
        for system, count in systems.items()
    ]
    rounds: Rounds[_Published] = Rounds(_PUBLISHING, contenders)
    if RABBITMQ.unavailable() is None:
        with running_rabbitmq() as server:
            rounds.run(scale.runs, lambda contender: _publish(contender, server.url))
    for system in systems:
        yield from rounds.rows(system, _published_rate, _published_rows)
    yield from rounds.skipped()
    what = "as many as .delay() with confirm_publish"
    stock = rounds.best(_published_rate, STOCK_RABBITMQ, STOCK_RABBITMQ_THREADS)
    yield from ratio(_PUBLISHING, what, rounds.of(RABBITMQ), stock, _published_rate, at_least(3.0))
    yield from ratio(_PUBLISHING, what, rounds.of(RABBITMQ_RECORDS), stock, _published_rate)


def _publish(contender: Contender, url: str) -> _Published:
    with contender.system.at(url) as place, tempfile.TemporaryDirectory() as folder, chdir(folder):
        arguments = {"app": contender.system.app, "count": contender.count, "requests": _REQUESTS}
        measured = run_probe("publish", arguments, place.env, contender.system.python)
        return _Published(contender.count, measured["seconds"], measured["cpu_seconds"])


def _published_rate(run: _Published) -> float:
    return run.count / run.seconds


def _published_rows(contender: Contender, runs: list[_Published], note: str) -> Iterator[Row]:
    name = contender.system.name
    rates = [run.count / run.seconds for run in runs]
    yield Figure(_PUBLISHING, name, f"{_REQUESTS} requests", "tasks/s", rates, note=note)
    cpu = [run.cpu_seconds / run.count * 1e6 for run in runs]
    yield Figure(_PUBLISHING, name, "processor time", "µs/task", cpu)
