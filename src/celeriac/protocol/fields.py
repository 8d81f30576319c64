"""The types that the fields of a task message have, and the checks that make them so.

A message comes from anywhere, and what follows (logs, records, database columns) relies on these types.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from celeriac.errors import MalformedMessage
from celeriac.protocol.excerpts import excerpt

__all__ = [
    "check_embed",
    "check_headers",
    "check_properties",
    "identifier",
    "moment",
    "readable",
    "time_limits",
]

#: Numbers beyond this would not fit a database's integer, nor a timer.
_MAX = 2**31 - 1

_TEXTS = ("root_id", "parent_id", "group", "shadow", "argsrepr", "kwargsrepr", "origin")
_COUNTS = ("retries", "group_index", "replaced_task_nesting")


def identifier(headers: Mapping[str, Any], name: str) -> str:
    """The header as text that is not empty: the task's id or its name."""
    value = headers.get(name)
    if type(value) is str and value and value.isascii():
        return value
    if value is None:
        raise MalformedMessage(f"The header {name!r} is missing.")
    _check_text(value, "header", name)
    if not value:
        raise MalformedMessage(f"The header {name!r} is empty.")
    return str(value)


def readable(value: Any) -> str | None:
    """``value`` if it can identify a task, else ``None``."""
    return value if type(value) is str and value and _encodable(value) else None


def check_headers(headers: Mapping[str, Any]) -> None:
    """Check the optional headers. Raises MalformedMessage, naming the one of the wrong type."""
    get = headers.get
    for name in _TEXTS:
        value = get(name)
        # What nearly all are is seen here, since a call costs more than the look.
        if value is not None and not (type(value) is str and value.isascii()):
            _check_text(value, "header", name)
    for name in _COUNTS:
        value = get(name)
        if value is not None and not (type(value) is int and value == 0):
            _check_count(value, "header", name)
    if (ignore_result := get("ignore_result")) is not None and type(ignore_result) is not bool:
        raise MalformedMessage("The header 'ignore_result' is neither true nor false.")
    if (stamped := get("stamped_headers")) and not _is_names(stamped):
        raise MalformedMessage("The header 'stamped_headers' is not a list of names.")
    if (stamps := get("stamps")) and not isinstance(stamps, dict):
        raise MalformedMessage("The header 'stamps' is not a mapping.")


def check_properties(properties: Mapping[str, Any]) -> None:
    """Check the properties that a task sees. Raises MalformedMessage, naming the one of the wrong type."""
    for name in ("correlation_id", "reply_to"):
        value = properties.get(name)
        if value is not None and not (type(value) is str and value.isascii()):
            _check_text(value, "property", name)
    if (priority := properties.get("priority")) is not None:
        _check_count(priority, "property", "priority")


def check_embed(embed: Mapping[str, Any]) -> None:
    """Check what follows the task. Raises MalformedMessage, naming the part of the wrong type."""
    for name in ("callbacks", "errbacks", "chain"):
        if (signatures := embed.get(name)) is not None and not _is_signatures(signatures):
            raise MalformedMessage(f"The body's {name} are not a list of signatures.")
    if (chord := embed.get("chord")) is not None and not _is_signature(chord):
        raise MalformedMessage("The body's chord is not a signature.")


def moment(headers: Mapping[str, Any], name: str) -> datetime | None:
    """The header as a time in UTC. One without a time zone is UTC already, as in Celery."""
    value = headers.get(name)
    if value is None:
        return None
    try:
        when = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    except (OverflowError, TypeError, ValueError) as exc:
        raise MalformedMessage(f"The header {name!r} is not a time: {excerpt(value)}.") from exc


def time_limits(headers: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The hard and the soft time limit in seconds. Zero is none, as in Celery."""
    limits = headers.get("timelimit")
    if not limits:
        return None, None
    if not isinstance(limits, (list, tuple)) or len(limits) != 2:
        raise MalformedMessage("The header 'timelimit' is not [hard, soft].")
    hard, soft = limits
    for limit in limits:
        if limit is not None and (type(limit) not in (int, float) or not 0 <= limit <= _MAX):
            raise MalformedMessage(
                f"The header 'timelimit' holds what is no number of seconds: {excerpt(limit)}."
            )
    return hard or None, soft or None


def _check_text(value: Any, kind: str, name: str) -> None:
    if type(value) is not str:
        raise MalformedMessage(f"The {kind} {name!r} is not a string: {excerpt(value)}.")
    if not _encodable(value):
        raise MalformedMessage(f"The {kind} {name!r} is not Unicode text: {excerpt(value)}.")


def _encodable(text: str) -> bool:
    # JSON can escape half of a surrogate pair, which no database and no terminal takes.
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _check_count(value: Any, kind: str, name: str) -> None:
    if type(value) is not int or not 0 <= value <= _MAX:
        raise MalformedMessage(f"The {kind} {name!r} is not a whole number from 0 up: {excerpt(value)}.")


def _is_signature(value: Any) -> bool:
    return isinstance(value, dict) and type(value.get("task")) is str


def _is_signatures(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_signature, value))


def _is_names(value: Any) -> bool:
    return isinstance(value, (list, tuple, set)) and all(type(name) is str for name in value)
