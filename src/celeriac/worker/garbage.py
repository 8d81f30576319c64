"""Python's cyclic garbage collector, told what a worker is like."""

from __future__ import annotations

import gc

__all__ = ["spare_collections"]

#: The interpreter's own thresholds, up to 3.11 and from 3.12 on; whoever has set others has a reason.
_DEFAULTS = frozenset({(700, 10, 10), (700, 10, 0), (2000, 10, 0), (2000, 10, 10)})

_THRESHOLDS = (10_000, 20, 20)


def spare_collections() -> None:
    """Look at what lives as long as the process no more, and at the rest less often.

    A worker keeps a few dozen objects for each task under way, and almost none of them is part of a cycle. Looking
    through all modules after every 70,000 new objects takes a third of its time.
    """
    if gc.isenabled() and gc.get_threshold() in _DEFAULTS:
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_THRESHOLDS)
