"""Idempotency keys: what a store remembers of a request that must start one task, however often it is sent."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

__all__ = ["KeyClaim"]


@dataclass(frozen=True, slots=True)
class KeyClaim:
    """Who has a key: the task that was started under it.

    ``fingerprint`` tells the requests of one key apart: whoever comes with another one asks for something else.
    ``at`` is when the key was claimed (UTC). ``new`` tells whether it is the caller's, who must start the task now.
    """

    task_id: str
    fingerprint: str
    at: datetime
    new: bool
