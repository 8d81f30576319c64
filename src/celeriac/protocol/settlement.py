"""What becomes of a message: one table from a task's outcome and its acknowledgement settings to an action."""

from __future__ import annotations

from enum import Enum

__all__ = ["Action"]


class Action(Enum):
    """What becomes of a delivered message."""

    ACKNOWLEDGE = "acknowledge"
    REQUEUE = "requeue"
    DISCARD = "discard"
    DEAD_LETTER = "dead-letter"
