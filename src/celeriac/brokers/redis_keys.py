"""Names of keys in Redis: kombu's, so that stock peers find what we write and we find what they write, and our own."""

from __future__ import annotations

import json
from bisect import bisect
from collections.abc import Mapping, Sequence
from typing import Any

from celeriac.errors import ConfigurationError
from celeriac.redis.scripts import Script

__all__ = ["Layout", "script"]

_SEPARATOR = "\x06\x16"
_STEPS = (0, 3, 6, 9)


def script(name: str) -> Script:
    """A script of the broker."""
    return Script.load("celeriac.brokers", "lua/queues.lua", f"lua/{name}.lua")


class Layout:
    """Where things are.

    Args:
        options: kombu's transport options ``global_keyprefix``, ``sep``, ``priority_steps``, ``unacked_key`` and
            ``unacked_index_key``; and ``priority_order``: ``"highest_first"`` or, as stock workers read,
            ``"lowest_first"``.
        db: The number of the database: pub/sub channels belong to all of them.

    Raises:
        ConfigurationError: An option cannot work.
    """

    def __init__(self, options: Mapping[str, Any], db: int) -> None:
        self.prefix = str(options.get("global_keyprefix") or "")
        self.separator = str(options.get("sep") or _SEPARATOR)
        steps = _steps(options.get("priority_steps"))
        #: The step of each priority from 0 to 9, as kombu finds it.
        self.step_of = [str(steps[bisect(steps, priority) - 1]) for priority in range(10)]
        self._suffixes = {str(step): f"{self.separator}{step}" if step else "" for step in steps}
        #: The steps in the order in which they are read.
        self.steps = _in_order([str(step) for step in sorted(steps)], options.get("priority_order"))
        self.unacked = self.prefix + str(options.get("unacked_key") or "unacked")
        self.unacked_index = self.prefix + str(options.get("unacked_index_key") or "unacked_index")
        self.leases = f"{self.prefix}celeriac:leases"
        self.wake = f"{self.prefix}celeriac:wake:{db}"
        #: What every script gets.
        self.keys = (self.unacked, self.unacked_index, self.leases, f"{self.prefix}celeriac:delayed")
        self.names = (self.prefix, self.separator, self.wake)

    def list_of(self, queue: str, step: str) -> str:
        """The list of a queue and a step."""
        return f"{self.prefix}{queue}{self._suffixes[step]}"

    def plain_list_of(self, queue: str) -> str:
        """The list of what has no priority."""
        return self.list_of(queue, self.step_of[0])

    def lists_of(self, queues: Sequence[str]) -> list[str]:
        """All lists of some queues."""
        return [self.list_of(queue, step) for queue in queues for step in self.steps]

    def delayed_of(self, queue: str) -> str:
        """The sorted set of a queue's delayed messages."""
        return f"{self.prefix}celeriac:delayed:{queue}"

    @staticmethod
    def ending_of(queue: str) -> str:
        """What follows the envelope in an entry of ``unacked``: the exchange, none, and the queue as routing key."""
        return f', "", {json.dumps(queue, ensure_ascii=False)}]'


def _steps(value: Any) -> list[int]:
    if value is None:
        return list(_STEPS)
    try:
        steps = [int(step) for step in value]
    except (TypeError, ValueError):
        steps = []
    if not steps or steps != sorted(set(steps)) or steps[0] < 0:
        raise ConfigurationError(f"priority_steps must be ascending numbers from 0, not {value!r}.")
    return steps


def _in_order(steps: list[str], order: Any) -> list[str]:
    if order not in (None, "highest_first", "lowest_first"):
        raise ConfigurationError(f'priority_order must be "highest_first" or "lowest_first", not {order!r}.')
    return steps if order == "lowest_first" else steps[::-1]
