"""What the inside of celeriac tells the outside: frozen events, and the protocol of who listens.

Loggers, metrics and traces are hooks; they live on upper floors and are handed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = [
    "DeliveryReceived",
    "ExecutionFinished",
    "ExecutionStarted",
    "Hook",
    "HookEvent",
    "Published",
    "Settled",
]


@dataclass(frozen=True, slots=True)
class Published:
    """A batch of messages was confirmed by the broker after ``seconds``."""

    task_ids: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class DeliveryReceived:
    """A worker took a delivery of a task."""

    task_id: str
    task: str
    queue: str
    deliveries: int


@dataclass(frozen=True, slots=True)
class ExecutionStarted:
    """A task's function is about to be called."""

    task_id: str
    task: str
    retries: int


@dataclass(frozen=True, slots=True)
class ExecutionFinished:
    """A task's function has ended in ``state`` after ``seconds``."""

    task_id: str
    task: str
    state: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Settled:
    """A delivery has ended; ``action`` is the settlement's."""

    task_id: str
    action: str


HookEvent = Published | DeliveryReceived | ExecutionStarted | ExecutionFinished | Settled


class Hook(Protocol):
    """Observes. Called on the event loop, so it must not block; what it raises is logged and goes no further."""

    def __call__(self, event: HookEvent, /) -> None: ...
