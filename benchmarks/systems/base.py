"""What a scenario has to know of a system."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

__all__ = ["Place", "System", "WorkerOptions"]


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How a worker is started; ``None`` leaves it to the system's default."""

    concurrency: int | None = None
    prefetch_multiplier: int | None = None

    def __str__(self) -> str:
        parts = []
        if self.concurrency is not None:
            parts.append(f"-c {self.concurrency}")
        if self.prefetch_multiplier is not None:
            parts.append(f"prefetch x {self.prefetch_multiplier}")
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
    def span(self, count: int) -> tuple[float, float] | None:
        """First start and last end in epoch seconds, where the system keeps them.

        Raises Failed when it keeps records, and they do not say that ``count`` tasks have succeeded.
        """


class System(ABC):
    """One task queue on one broker."""

    name: str

    @abstractmethod
    def unavailable(self) -> str | None:
        """Why it cannot be measured here, or ``None``."""

    @abstractmethod
    def place(self) -> AbstractContextManager[Place]:
        """An empty place."""

    @abstractmethod
    def worker(self, options: WorkerOptions) -> Sequence[str]:
        """The arguments that start a worker."""
