"""What a message's headers show of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["flat_repr"]


def _quoted(text: str) -> str:
    # Celery escapes nothing but the quote.
    return f"'{text}'" if "'" not in text else "'" + text.replace("'", "\\'") + "'"


_PLAIN: dict[type, Callable[[Any], str]] = {
    str: _quoted,
    int: int.__repr__,
    float: float.__repr__,
    bool: bool.__repr__,
    type(None): repr,
}


def flat_repr(values: Sequence[Any] | Mapping[str, Any], limit: int | None) -> str | None:
    """Celery's ``saferepr`` of a tuple or a dict of texts and numbers, in a tenth of its time.

    None where there is something else in it, or where ``limit`` characters are not enough: that is left to Celery.
    """
    try:
        if isinstance(values, Mapping):
            shown = [
                f"{_PLAIN[type(key)](key)}: {_PLAIN[type(value)](value)}" for key, value in values.items()
            ]
            text = f"{{{', '.join(shown)}}}"
        else:
            shown = [_PLAIN[type(value)](value) for value in values]
            text = f"({shown[0]},)" if len(shown) == 1 else f"({', '.join(shown)})"
    except KeyError:
        return None
    return text if limit is None or len(text) < limit else None
