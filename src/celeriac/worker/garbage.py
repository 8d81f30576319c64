"""Python's cyclic garbage collector, told what a worker is like."""

from __future__ import annotations

import gc

__all__ = ["freeze_what_stays"]


def freeze_what_stays() -> None:
    """Look no more at what lives as long as the process does.

    Looking through all modules again and again, as there are new objects for every task, took a third of a worker's
    time. What comes later is collected as often as ever: an exception that a task keeps in a variable of its own is a
    cycle, and may hold a lot.
    """
    gc.collect()
    gc.freeze()
