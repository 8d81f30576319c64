"""What a scenario has to know of a system."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from benchmarks.processes import Command

__all__ = ["Place", "System", "WorkerOptions"]


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How a worker is started; ``None`` leaves it to the system's default, or to what is best for it."""

    concurrency: int | None = None
    prefetch_multiplier: int | None = None
    #: Stock Celery's: threads, prefork, solo.
    pool: str | None = None
    processes: int | None = None

    def __str__(self) -> str:
        parts = []
        if self.pool is not None:
            parts.append(f"-P {self.pool}")
        if self.concurrency is not None:
            parts.append(f"-c {self.concurrency}")
        if self.prefetch_multiplier is not None:
            parts.append(f"prefetch x {self.prefetch_multiplier}")
        if self.processes is not None:
            parts.append(f"{self.processes} processes")
        return ", ".join(parts) or "defaults"


class Place(ABC):
    """An empty broker (and store) of one system, for one measurement."""

    #: For every process that takes part.
    env: Mapping[str, str]

    @abstractmethod
    def fill(self, task: str, count: int, argument: float) -> None:
        """Enqueue ``count`` calls ``task(argument)``."""

    @abstractmethod
    def begun(self) -> bool:
        """Whether the first of the filled-in tasks has been started."""

    @abstractmethod
    def drained(self) -> bool:
        """Whether nothing waits any more, and nothing is unacknowledged."""

    @abstractmethod
    def enqueued(self) -> tuple[int, int]:
        """How many messages and how many records there are, as long as no worker has been there.

        A system that keeps no record of a task that waits has as many of them as messages.
        """

    @abstractmethod
    def span(self, count: int) -> tuple[float, float] | None:
        """First start and last end in epoch seconds, where the system keeps them.

        Raises Failed when it keeps records, and they do not say that ``count`` tasks have succeeded.
        """


class System(ABC):
    """One task queue on one broker."""

    name: str

    #: The module of its tasks in ``benchmarks.apps``, and the interpreter that has what it imports.
    app: str
    python: str

    #: How its worker is started where the best of several settings counts.
    settings: Sequence[WorkerOptions] = (WorkerOptions(),)

    @abstractmethod
    def unavailable(self) -> str | None:
        """Why it cannot be measured here, or ``None``."""

    @abstractmethod
    def place(self) -> AbstractContextManager[Place]:
        """An empty place."""

    @abstractmethod
    def worker(self, options: WorkerOptions) -> Command:
        """What starts a worker."""

    def workers(self, options: WorkerOptions) -> Sequence[Command]:
        """What starts as many processes as ``options`` say, where it takes more than one command."""
        return [self.worker(options)]
