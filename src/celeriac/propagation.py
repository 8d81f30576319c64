"""What travels with a task from the code that enqueues it: the owner, the request's id, and named context variables.

In headers of the message, which are there only when there is something to say::

    celeriac_owner        whose task it is
    celeriac_request_id   the HTTP request, or whatever else set it off
    celeriac_context      values of the variables that the setting ``celeriac_propagate`` names, by "module:variable"

A worker sets the variables again for the execution, so that whatever the task publishes inherits them. What comes in a
header is as trustworthy as the message; of a wrong type, it is ignored.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Any, TypeGuard
from uuid import UUID

from kombu.utils.imports import symbol_by_name

from celeriac.errors import ConfigurationError, InvalidArguments

__all__ = [
    "Propagation",
    "is_request_id",
    "owned",
    "owner",
    "owner_in",
    "request_id",
    "request_id_in",
    "reset",
]

#: Whose the tasks are that this code enqueues; ``using(owner=…)`` wins.
owner: ContextVar[str | None] = ContextVar("celeriac_owner", default=None)

#: The id of the request that this code serves, or whose task it runs.
request_id: ContextVar[str | None] = ContextVar("celeriac_request_id", default=None)

_OWNER, _REQUEST_ID, _CONTEXT = "celeriac_owner", "celeriac_request_id", "celeriac_context"

#: At most 128 visible characters of ASCII: nothing that could forge a line of a log or a header.
_REQUEST_IDS = re.compile(r"[!-~]{1,128}")

#: What the task before has set in a context that runs one after the other.
_restored: ContextVar[Sequence[tuple[ContextVar[Any], Token[Any]]]] = ContextVar(
    "celeriac_restored", default=()
)

_UNSET: Any = object()

#: Types whose values JSON brings back as they are.
_SAME_IN_JSON = frozenset({str, int, bool, type(None)})


def is_request_id(value: object) -> TypeGuard[str]:
    """Whether this may be a request's id: 1 to 128 visible ASCII characters."""
    return isinstance(value, str) and _REQUEST_IDS.fullmatch(value) is not None


def owner_in(headers: Mapping[str, Any]) -> str | None:
    """The owner that a message's headers name."""
    found = headers.get(_OWNER)
    return found if isinstance(found, str) and found and found.isprintable() else None


def request_id_in(headers: Mapping[str, Any]) -> str | None:
    """The request that a message's headers name."""
    found = headers.get(_REQUEST_ID)
    return found if is_request_id(found) else None


class Propagation:
    """What travels with the tasks of one app.

    ``paths`` name context variables as "module:variable". Raises ConfigurationError for what is none.
    """

    __slots__ = ("_variables",)

    def __init__(self, paths: Sequence[str] = ()) -> None:
        self._variables = [(path, _variable(path)) for path in paths]

    def take(self, options: dict[str, Any]) -> dict[str, Any] | None:
        """The headers for a call made here and now. Takes ``owner`` out of the call's options.

        An owner among the options wins, even if it is None; then one in the call's own ``headers``, which a retry
        brings; then the context variable. Raises InvalidArguments for what is no owner, and ConfigurationError for a
        variable whose value JSON cannot express.
        """
        whose = owner.get() if not options else _owner_of(options)
        asked = request_id.get()
        if whose is None and asked is None and not self._variables:
            return None
        headers: dict[str, Any] = {}
        if whose is not None:
            headers[_OWNER] = _name(whose)
        if asked is not None:
            headers[_REQUEST_ID] = asked
        if self._variables and (values := self._values()):
            headers[_CONTEXT] = values
        return headers

    def add(self, options: dict[str, Any]) -> None:
        """Put the headers for a call made here and now among the options that Celery's own publishing takes."""
        if carried := self.take(options):
            options["headers"] = {**carried, **(options.get("headers") or {})}

    def restore(self, headers: Mapping[str, Any]) -> None:
        """Set the variables of this context to what a message brings; what it does not bring stays as it is."""
        if _OWNER in headers and (whose := owner_in(headers)):
            owner.set(whose)
        if _REQUEST_ID in headers and (asked := request_id_in(headers)):
            request_id.set(asked)
        if self._variables and isinstance(values := headers.get(_CONTEXT), Mapping):
            for path, variable in self._variables:
                if (value := values.get(path, _UNSET)) is not _UNSET:
                    variable.set(value)

    def restore_anew(self, headers: Mapping[str, Any]) -> None:
        """As :meth:`restore`, in a context that runs one task after the other, as Celery's own pools do."""
        for variable, token in _restored.get():
            with contextlib.suppress(ValueError):  # of another context, which this one is a copy of
                variable.reset(token)
        reset()
        values = headers.get(_CONTEXT)
        known = [
            variable for path, variable in self._variables if isinstance(values, Mapping) and path in values
        ]
        _restored.set([(variable, variable.set(None)) for variable in known])
        self.restore(headers)

    def _values(self) -> dict[str, Any]:
        found = {}
        for path, variable in self._variables:
            if (value := variable.get(_UNSET)) is not _UNSET:
                found[path] = value if type(value) in _SAME_IN_JSON else _as_json(path, value)
        return found


@contextmanager
def owned(options: Mapping[str, Any] | None) -> Iterator[None]:
    """Have what is called inside belong to the owner that a call's options name, if they name one."""
    if not options or "owner" not in options:
        yield
        return
    whose = options["owner"]
    token = owner.set(None if whose is None else _name(whose))
    try:
        yield
    finally:
        owner.reset(token)


def reset() -> None:
    """Nobody's, and of no request: what a worker starts from, wherever it was started."""
    owner.set(None)
    request_id.set(None)


def _owner_of(options: dict[str, Any]) -> Any:
    given = options.get("headers")
    if "owner" in options:
        if given and _OWNER in given:
            options["headers"] = {name: value for name, value in given.items() if name != _OWNER}
        return options.pop("owner")
    return (given and owner_in(given)) or owner.get()


def _name(whose: Any) -> str:
    if isinstance(whose, (str, int, UUID)) and not isinstance(whose, bool):
        name = str(whose)
        if name and name.isprintable():  # it is shown, in logs and in pages
            return name
    raise InvalidArguments(
        f"The owner of a task is a non-empty, printable str, an int or a UUID, not {whose!r}."
    )


def _as_json(path: str, value: Any) -> Any:
    """A copy, too: the message is written later, when the value may have been changed."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        raise ConfigurationError(
            f"celeriac_propagate names {path}, whose value is a {type(value).__qualname__} that JSON cannot express: "
            "set the variable to what JSON can, or take it from the setting."
        ) from None


def _variable(path: str) -> ContextVar[Any]:
    try:
        found = symbol_by_name(path)
    except Exception as exc:
        raise ConfigurationError(
            f"celeriac_propagate names {path}, which cannot be imported: {exc!r}. "
            'Name context variables as "module:variable".'
        ) from exc
    if not isinstance(found, ContextVar):
        raise ConfigurationError(
            f"celeriac_propagate names {path}, which is a {type(found).__qualname__} and no ContextVar."
        )
    return found
