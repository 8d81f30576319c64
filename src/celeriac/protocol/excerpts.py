"""Short texts about values and exceptions that a stranger's bytes gave rise to, for our own messages.

Nothing here raises: a value may be nested too deep, or be too large a number, for ``repr``.
"""

from __future__ import annotations

import reprlib
from typing import Any

__all__ = ["excerpt", "reason"]


def excerpt(value: Any) -> str:
    """The value's ``repr``, cut short."""
    try:
        return reprlib.repr(value)[:100]
    except Exception:  # noqa: BLE001 - the type says enough
        return f"a value of type {type(value).__name__}"


def reason(exc: BaseException) -> str:
    """What an exception says, on one line and cut short, without a full stop."""
    try:
        text = " ".join(str(exc).split())[:200].rstrip(".")
    except Exception:  # noqa: BLE001 - the type says enough
        text = ""
    return text or type(exc).__name__
