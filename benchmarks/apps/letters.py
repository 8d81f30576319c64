"""What the endpoints that are compared have in common: the request, the answer, and a count of what was accepted."""

from __future__ import annotations

from itertools import count

from pydantic import BaseModel

__all__ = ["Accepted", "Counter", "Letter"]


class Letter(BaseModel):
    """What a user asks for."""

    recipient: str
    subject: str
    body: str


class Accepted(BaseModel):
    """It will be done."""

    task_id: str


class Counter:
    """Requests that were enqueued and answered, of whichever thread."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self.total = 0

    def add(self) -> None:
        """One more."""
        # Neither step is more than one instruction of the interpreter, and the largest number is written last.
        self.total = max(self.total, next(self._numbers))
