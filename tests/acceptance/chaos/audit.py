"""Reads what the auditor's processes have written down, and holds it against what was accepted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["NOTICES", "Audit", "Death", "Line"]

#: Seconds after which a worker that was stopped or cut off has noticed what it has lost.
NOTICES = 3.0

#: Seconds after a task's end within which its message is settled, on a machine under load and beside a process that was
#: stopped while it held SQLite's lock. Whoever dies later has nothing to do with a second start.
_SETTLES = 30.0


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a log: what has happened to which attempt at which task, in which process, and when (epoch).

    The ``attempt`` of one that was accepted is 1 if it is delayed.
    """

    what: str
    task_id: str
    attempt: int
    pid: int
    at: float


@dataclass(frozen=True, slots=True)
class Death:
    """A process that was killed, or paused or cut off for so long that it counts as dead, from then on.

    Without a ``pid`` it was everybody's server.
    """

    at: float
    pid: int | None = None
    until: float = float("inf")


@dataclass
class Audit:
    """All lines of a folder of logs, as of when they were read."""

    lines: Sequence[Line]
    starts: dict[str, list[Line]] = field(default_factory=lambda: defaultdict(list))
    ends: dict[str, list[Line]] = field(default_factory=lambda: defaultdict(list))
    accepted: dict[str, Line] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, folder: Path) -> Audit:
        """Read the logs of a folder. A last line without its end is what a process was about to write."""
        lines = [line for path in sorted(folder.glob("*.log")) for line in _read(path)]
        audit = cls(sorted(lines, key=lambda line: line.at))
        for line in audit.lines:
            audit.counts[line.what] += 1
            if line.what == "start":
                audit.starts[line.task_id].append(line)
            elif line.what == "end":
                audit.ends[line.task_id].append(line)
            elif line.what == "accepted":
                audit.accepted[line.task_id] = line
        return audit

    def doubled(self, deaths: Iterable[Death] = ()) -> list[str]:
        """Tasks of which an attempt was started twice although nobody who had it had died in between."""
        deaths = list(deaths)
        return [
            task_id
            for task_id, starts in self.starts.items()
            if _is_doubled(starts, self._ends_of(task_id), deaths, self.accepted.get(task_id))
        ]

    def _ends_of(self, task_id: str) -> dict[tuple[int, int], float]:
        """When processes ended attempts at a task, by process and attempt."""
        return {(end.pid, end.attempt): end.at for end in self.ends.get(task_id, ())}

    def repeated(self) -> list[str]:
        """Tasks of which an attempt was started more than once, for whatever reason."""
        return [task_id for task_id, starts in self.starts.items() if any(_repeated(starts))]

    def recoveries(self, deaths: Iterable[Death]) -> list[float]:
        """For each attempt that a process had under way when it died: seconds until it was started elsewhere."""
        by_pid = {death.pid: death for death in deaths if death.pid is not None}
        found = []
        for starts in self.starts.values():
            for one, other in _repeated(starts):
                death = by_pid.get(one.pid)
                if death is not None and one.at <= death.at <= other.at:
                    found.append(other.at - death.at)
        return found

    def unfinished(self, pid: int) -> list[str]:
        """The tasks that a process has started, and not ended in any way."""
        running: dict[str, int] = {}
        for line in self.lines:
            if line.pid == pid and line.what == "start":
                running[line.task_id] = line.attempt
            elif line.pid == pid:
                running.pop(line.task_id, None)
        return list(running)


def _read(path: Path) -> Iterable[Line]:
    for text in path.read_text().splitlines(keepends=True):
        if text.endswith("\n"):
            what, task_id, attempt, pid, _monotonic, at = text.split()
            yield Line(what, task_id, int(attempt), int(pid), float(at))


def _repeated(starts: Sequence[Line]) -> Iterable[tuple[Line, Line]]:
    """Each start of an attempt with the one before it."""
    last: dict[int, Line] = {}
    for start in starts:
        if start.attempt in last:
            yield last[start.attempt], start
        last[start.attempt] = start


def _is_doubled(
    starts: Sequence[Line],
    ends: Mapping[tuple[int, int], float],
    deaths: Sequence[Death],
    accepted: Line | None,
) -> bool:
    first: int | None = None  # the earliest attempt that had to be repeated: what it has called is, too
    for one, other in _repeated(starts):
        settled = ends.get((one.pid, one.attempt), float("inf")) + _SETTLES
        before = [death for death in deaths if death.at < settled]
        if _excused(one, other, before, _asked_for(one, starts, accepted)):
            first = one.attempt if first is None else min(first, one.attempt)
        elif first is None or one.attempt <= first:
            return True
    return False


def _asked_for(start: Line, starts: Sequence[Line], accepted: Line | None) -> float:
    """From when on the server may have moved a message for this attempt about.

    That is the start of the one before it, which asks for it; for a first one that is delayed, when it was accepted.
    """
    earlier = [each.at for each in starts if each.attempt < start.attempt and each.at <= start.at]
    if not earlier and accepted is not None and accepted.attempt:
        earlier = [min(accepted.at, start.at)]
    return max(earlier, default=start.at)


def _excused(one: Line, other: Line, deaths: Sequence[Death], asked_for: float) -> bool:
    """Whether whoever had the first start was dead at some time before the second, or who made the second was.

    A worker that is stopped between its last look at a task's lease and the task's first step takes that step when it
    goes on; RabbitMQ's restart, unlike its silence, may have cost it what it had any time before; and who asks for
    another attempt, and is cut off before that is confirmed, asks again.
    """
    return any(
        (death.pid == one.pid and one.at <= death.until and death.at <= other.at)
        or (death.pid is None and asked_for <= death.until and death.at <= other.at)
        or (death.pid == other.pid and death.at <= other.at <= death.until + NOTICES)
        for death in deaths
    )
