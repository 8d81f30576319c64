"""Values of users as an answer can carry them.

A record may hold what JSON's texts can say and UTF-8 cannot: half a surrogate pair, of a file's name for instance. One
such record must not make an error of every list that it is in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import PydanticSerializationError, to_json

__all__ = ["json_of", "sayable"]

#: How deep an answer may be nested; pydantic gives up somewhat later.
_DEEPEST = 100


def sayable(value: Any) -> Any:
    """The same JSON value; where it cannot be written, with escapes for what UTF-8 cannot say, and not as deep."""
    try:
        to_json(value)
    except PydanticSerializationError:
        return _said(value, 0)
    return value


def json_of(value: Any) -> str:
    """The value as JSON text. JSON has no NaN; a browser's JSON.parse would throw upon one."""
    try:
        return to_json(value, inf_nan_mode="null").decode()
    except PydanticSerializationError:
        return to_json(_said(value, 0), inf_nan_mode="null").decode()


def _said(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if not isinstance(value, (Mapping, list, tuple)):
        return value
    if depth >= _DEEPEST:
        return "…"
    if isinstance(value, Mapping):
        return {_said(key, depth): _said(each, depth + 1) for key, each in value.items()}
    return [_said(each, depth + 1) for each in value]
