"""What was enqueued, as a test sees it, and whether that is what it expects."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic_core import PydanticSerializationError, to_jsonable_python

from celeriac.errors import InvalidArguments
from celeriac.task import PendingCall, Task

__all__ = ["EnqueuedCall", "Expected", "describe"]

#: Seconds by which two times that were worked out apart may differ.
_TOLERANCE = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class EnqueuedCall:
    """A call that was enqueued. ``args`` and ``kwargs`` are what travels: JSON values, decoded.

    ``at`` is when it was enqueued; ``eta`` and ``expires`` are times in UTC, ``None`` where the call has none.
    """

    id: str
    name: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    queue: str
    at: datetime
    eta: datetime | None = None
    expires: datetime | None = None
    priority: int = 0
    owner: str | None = None
    parent_id: str | None = None
    headers: Mapping[str, Any]

    def __str__(self) -> str:
        more = [f"queue {self.queue!r}"]
        if self.eta is not None:
            more.append(f"due in {(self.eta - self.at).total_seconds():g} s")
        if self.expires is not None:
            more.append(f"expires in {(self.expires - self.at).total_seconds():g} s")
        if self.priority:
            more.append(f"priority {self.priority}")
        if self.owner is not None:
            more.append(f"owner {self.owner!r}")
        return f"{describe(self.name, self.args, self.kwargs)}   {', '.join(more)}"


def describe(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """A call as it is written."""
    given = [*map(_short, args), *(f"{key}={_short(value)}" for key, value in kwargs.items())]
    return f"{name}({', '.join(given)})"


def _short(value: Any) -> str:
    text = "".join(char for char in repr(value) if unicodedata.category(char) != "Cc")
    return text if len(text) <= 120 else f"{text[:117]}..."


class Expected:
    """What a test expects to be enqueued: a task, by itself or with options (``task.using(…)``), or a name.

    No arguments at all mean any. Raises TypeError for an option that no call keeps.
    """

    def __init__(self, what: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._options: dict[str, Any] = {}
        if isinstance(what, PendingCall):
            self._options = {name: value for name, value in what._options.items() if value is not None}
            what = what._task
        self._task: Task[..., Any] | None = what if isinstance(what, Task) else None
        self.name: str = what if isinstance(what, str) else what.name
        self._args, self._kwargs = args, kwargs
        self._any = not args and not kwargs
        if unknown := self._options.keys() - _OPTIONS.keys():
            raise TypeError(f"assert_enqueued cannot tell what a call had for {', '.join(sorted(unknown))}.")

    def __str__(self) -> str:
        text = f"{self.name}(…)" if self._any else describe(self.name, self._args, self._kwargs)
        options = ", ".join(f"{name}={value!r}" for name, value in self._options.items())
        return f"{text} with {options}" if options else text

    def fits(self, call: EnqueuedCall) -> bool:
        """Whether this is such a call."""
        return (
            call.name == self.name
            and (self._any or self._same_arguments(call))
            and all(_OPTIONS[name](call, value) for name, value in self._options.items())
        )

    def _same_arguments(self, call: EnqueuedCall) -> bool:
        if self._task is None or not self._task.typing:
            return _equal([*call.args], [*self._args]) and _equal({**call.kwargs}, {**self._kwargs})
        schema = self._task.schema
        found = schema.by_name(call.args, call.kwargs)
        if _equal(found, schema.by_name(self._args, self._kwargs)):
            return True
        try:
            args, kwargs = schema.dump(tuple(self._args), dict(self._kwargs))
        except InvalidArguments:  # unittest.mock.ANY fits no annotation
            return False
        return _equal(found, schema.by_name(args, kwargs))


def _equal(found: Any, expected: Any) -> bool:
    """Whether a JSON value is what is expected, which may be a value that becomes one, and may have ANY inside."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        return expected.keys() == found.keys() and all(_equal(found[key], expected[key]) for key in expected)
    if isinstance(expected, (list, tuple)) and isinstance(found, (list, tuple)):
        return len(expected) == len(found) and all(map(_equal, found, expected))
    return bool(expected == found) or _json(expected) == _json(found)


def _json(value: Any) -> Any:
    try:
        return to_jsonable_python(value)
    except PydanticSerializationError:
        return value


def _moment(value: Any, since: datetime) -> datetime:
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    return since + (value if isinstance(value, timedelta) else timedelta(seconds=value))


def _same_time(found: datetime | None, at: datetime, value: Any) -> bool:
    return found is not None and abs((found - _moment(value, at)).total_seconds()) <= _TOLERANCE


#: How an option of a call is found in what was enqueued.
_OPTIONS: Mapping[str, Any] = {
    "queue": lambda call, value: call.queue == value,
    "priority": lambda call, value: call.priority == value,
    "owner": lambda call, value: call.owner == value,
    "task_id": lambda call, value: call.id == value,
    "parent_id": lambda call, value: call.parent_id == value,
    "countdown": lambda call, value: _same_time(call.eta, call.at, value),
    "eta": lambda call, value: _same_time(call.eta, call.at, value),
    "expires": lambda call, value: _same_time(call.expires, call.at, value),
    "headers": lambda call, value: value.items() <= call.headers.items(),
}
