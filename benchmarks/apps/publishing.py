"""How every application of the benchmarks lets itself be published to: by one coroutine function, while it is open."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

__all__ = ["Publish"]

#: Enqueues one no-op task with a number, and returns when the broker has confirmed it.
Publish = Callable[[int], Awaitable[object]]
