"""Contenders that take turns, round by round: when the machine is slower for a while, everybody is."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from benchmarks.figures import Bar, Figure, Skipped
from benchmarks.processes import Failed
from benchmarks.report import Row
from benchmarks.systems import RedisSystem, WorkerOptions
from benchmarks.systems.bridge import BridgeSystem
from benchmarks.systems.rabbitmq import RabbitMQSystem

__all__ = ["Contender", "Rounds", "ratio"]

Run = TypeVar("Run")

#: What takes part: all on one server.
Served = RedisSystem | RabbitMQSystem | BridgeSystem

#: One contender and what was measured of it, one run for each round.
Measured = tuple["Contender", list[Run]]


@dataclass(frozen=True, slots=True)
class Contender:
    """A system, how many tasks it gets, and the setting of its worker. One of ``ours`` must not fail."""

    system: Served
    count: int
    options: WorkerOptions = WorkerOptions()  # noqa: RUF009 - frozen
    ours: bool = False

    def __str__(self) -> str:
        return self.system.name if self.options == WorkerOptions() else f"{self.system.name}, {self.options}"

    @property
    def worker(self) -> str:
        """The worker, with its setting where that is not the only one there is."""
        return "one worker" if self.options == WorkerOptions() else f"one worker, {self.options}"


class Rounds(Generic[Run]):
    """What was measured of each contender."""

    def __init__(self, scenario: str, contenders: list[Contender]) -> None:
        self._scenario = scenario
        self._absent: dict[str, str] = {}
        for system in {contender.system for contender in contenders}:
            reason = system.unavailable()
            if reason is not None:
                self._absent[system.name] = reason
        present = [each for each in contenders if each.system.name not in self._absent]
        self._runs: dict[Contender, list[Run]] = {contender: [] for contender in present}

    def __iter__(self) -> Iterator[Measured[Run]]:
        return iter(self._runs.items())

    def run(self, rounds: int, measure: Callable[[Contender], Run]) -> None:
        """Measure everybody once in each round. Whoever fails is out, and skipped with the reason."""
        for _ in range(rounds):
            for contender in list(self._runs):
                try:
                    self._runs[contender].append(measure(contender))
                except Failed as failure:
                    if contender.ours:
                        raise
                    print(f"{self._scenario}: {contender} failed: {failure}", file=sys.stderr, flush=True)
                    self._absent[str(contender)] = failure.last_line
                    del self._runs[contender]

    def of(self, system: Served) -> Measured[Run] | None:
        """What was measured of ``system`` with its only setting."""
        return next(((each, runs) for each, runs in self._runs.items() if each.system is system), None)

    def best(self, value: Callable[[Run], float], *systems: Served) -> Measured[Run] | None:
        """Of all settings of ``systems``, the one whose median of ``value`` is the highest."""
        # A setting picked by a trial of its own would be the one that was lucky then.
        among = [(each, runs) for each, runs in self._runs.items() if each.system in systems]
        return max(among, key=lambda each: statistics.median(map(value, each[1])), default=None)

    def rows(
        self,
        system: Served,
        value: Callable[[Run], float],
        rows: Callable[[Contender, list[Run], str], Iterator[Row]],
    ) -> Iterator[Row]:
        """The rows of the best setting of ``system``."""
        best = self.best(value, system)
        if best is not None:
            tried = sum(each.system is system for each in self._runs)
            yield from rows(*best, f"the best of {tried} settings" if tried > 1 else "")

    def skipped(self) -> Iterator[Row]:
        """One row for each contender that could not be measured."""
        for name, reason in self._absent.items():
            yield Skipped(self._scenario, name, reason)


def ratio(
    scenario: str,
    what: str,
    ours: Measured[Run] | None,
    theirs: Measured[Run] | None,
    value: Callable[[Run], float],
    bar: Bar | None = None,
) -> Iterator[Row]:
    """How many times ``theirs`` ours is, round by round; nothing where one of the two is missing."""
    if ours is not None and theirs is not None:
        values = [value(mine) / value(other) for mine, other in zip(ours[1], theirs[1], strict=True)]
        yield Figure(
            scenario, ours[0].system.name, what, "times", values, bar, f"round by round, to {theirs[0]}"
        )
