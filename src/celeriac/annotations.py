"""An annotation as a converter: Python values to JSON values and back, through pydantic.

What pydantic cannot use, or Python cannot resolve, counts as no annotation: such values pass as they are wherever
JSON (kombu's, with its tagged types) can take them.
"""

from __future__ import annotations

import inspect
import json
import logging
import sys
import types
from collections import abc
from collections.abc import Callable
from typing import Any, Union, get_args, get_origin, get_type_hints

import pydantic
from pydantic import (
    PydanticSchemaGenerationError,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import to_jsonable_python

from celeriac.masking import hides, refuse_hidden
from celeriac.protocol import codec

__all__ = [
    "ANY",
    "LOADED",
    "Converter",
    "converter_of",
    "evaluate",
    "resolve",
    "result_annotation",
    "signature_of",
]

_logger = logging.getLogger(__name__)

_SCALARS: frozenset[type] = frozenset([str, int, float, bool, types.NoneType])
_CONTAINERS: frozenset[type] = frozenset([list, dict])
_STREAMS = (abc.AsyncIterator, abc.AsyncGenerator, abc.AsyncIterable)
_AWAITABLES = (abc.Coroutine, abc.Awaitable)

# Arguments travel under their fields' names, which always lead back; aliases are what other clients may send.
_DUMPED: dict[str, Any] = {"mode": "json", "by_alias": False, "round_trip": True}
LOADED: dict[str, Any] = {"by_alias": True, "by_name": True}
if tuple(map(int, pydantic.VERSION.split(".")[:2])) < (2, 11):  # pragma: no cover - has no by_name
    _DUMPED, LOADED = {**_DUMPED, "by_alias": True}, {}


class Converter:
    """Converts the values of one annotation.

    ``exact`` are the types whose values are JSON already and right as they are, ``open`` those that are right but may
    hold anything. Without an ``adapter`` everything is right. ``hides`` says that there may be a secret in a value.
    """

    __slots__ = ("adapter", "exact", "hides", "open")

    def __init__(
        self,
        adapter: TypeAdapter[Any] | None = None,
        exact: frozenset[type] = _SCALARS,
        open: frozenset[type] = frozenset(),  # noqa: A002
        *,
        hides: bool = False,
    ) -> None:
        self.adapter = adapter
        self.exact = exact
        self.open = open
        self.hides = hides

    def dump(self, value: Any) -> Any:
        """A value as a JSON value. Raises ValidationError, and ValueError for what JSON cannot take."""
        kind = type(value)
        if kind in self.exact:
            return value
        if self.adapter is None or kind in self.open:
            return as_json_value(value)
        value = self.adapter.validate_python(value)
        if type(value) in _SCALARS:
            return value
        if self.hides:
            refuse_hidden(self.adapter.dump_python(value))
        try:
            return self.adapter.dump_python(value, **_DUMPED)
        except ValueError:  # bytes that are no text; kombu's JSON has a form for them
            return as_json_value(value)

    def load(self, value: Any) -> Any:
        """The value that was dumped. Raises ValidationError."""
        if self.adapter is None or type(value) in self.exact or type(value) in self.open:
            return value
        try:
            return self.adapter.validate_python(value, **LOADED)
        except ValidationError as exc:
            # Strict types take text for a time or a UUID only where they know that it is JSON.
            try:
                return self.adapter.validate_json(codec.dumps(value), **LOADED)
            except (ValidationError, TypeError, ValueError):
                raise exc from None

    def dump_result(self, value: Any) -> Any:
        """A result as a JSON value: by the annotation if it fits, else by its own type. Raises ValueError."""
        if type(value) in self.exact:
            return value
        if self.adapter is None:
            return as_json_value(value)
        try:
            return self.adapter.dump_python(self.adapter.validate_python(value), mode="json")
        except ValidationError:
            return to_jsonable_python(value)
        except ValueError:
            return as_json_value(value)

    def load_result(self, value: Any) -> Any:
        """The result that was dumped; a JSON value that does not fit the annotation is returned as it is."""
        try:
            return self.load(value)
        except ValidationError:
            return value


#: Takes anything.
ANY = Converter()


def converter_of(annotation: Any) -> Converter:
    """The converter of an annotation that is resolved; :data:`ANY` when pydantic cannot use it."""
    # By identity: what annotates a parameter may be anything, and compare to anything else as it likes.
    if annotation is Any or annotation is object or annotation is inspect.Parameter.empty:
        return ANY
    try:
        adapter = TypeAdapter(annotation)
    except PydanticSchemaGenerationError:  # a class that pydantic does not know
        return ANY
    except PydanticUserError as exc:
        _logger.warning("Arguments are not validated by the annotation %s: %s", annotation, exc.message)
        return ANY
    except Exception:  # noqa: BLE001 - the annotation is the user's and may be anything
        return ANY
    members = _members(annotation)
    return Converter(adapter, members & _SCALARS, members & _CONTAINERS, hides=hides(annotation))


def resolve(annotation: Any, function: Callable[..., Any]) -> Any:
    """The annotation of a function's parameter without forward references, or ``Any`` when that cannot be."""
    try:
        return evaluate(annotation, function)
    except Exception:  # noqa: BLE001 - evaluating a user's annotation may raise anything
        return Any


def evaluate(annotation: Any, function: Callable[..., Any]) -> Any:
    """The annotation of a function's parameter without forward references. Raises whatever evaluating it raises."""
    if annotation is inspect.Parameter.empty:
        return Any
    names: dict[str, Any] = {}
    for name, cell in zip(_code_of(function), getattr(function, "__closure__", None) or (), strict=False):
        names[name] = cell.cell_contents
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    return get_type_hints(holder, getattr(function, "__globals__", {}), names, include_extras=True)["it"]


def result_annotation(function: Callable[..., Any], annotation: Any) -> Any:
    """The annotation of what a task returns in the end: of an async generator nothing, of a coroutine its result."""
    if inspect.isasyncgenfunction(function):
        return None
    origin = get_origin(annotation) or annotation
    if origin in _STREAMS:
        return None
    if origin in _AWAITABLES:
        arguments = get_args(annotation)
        return arguments[-1] if arguments else Any
    return annotation


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """The signature with its annotations as they are written, or one that takes anything for a builtin without any."""
    try:
        if sys.version_info >= (3, 14):
            from annotationlib import Format

            return inspect.signature(function, annotation_format=Format.FORWARDREF)
        return inspect.signature(function)
    except (TypeError, ValueError):
        return inspect.signature(lambda *args, **kwargs: None)


def as_json_value(value: Any) -> Any:
    """``value`` itself if :func:`celeriac.protocol.codec.dumps` takes it, else what comes closest, by pydantic.

    Raises ValueError for what pydantic does not know either.
    """
    kind = type(value)
    if kind in _SCALARS or (kind in _CONTAINERS and _is_flat(value)):
        return value
    try:
        codec.dumps(value)
    except TypeError:
        pass
    else:
        return value
    try:
        return codec.loads(_encode_anything(value))
    except TypeError:  # keys that are no text
        return to_jsonable_python(value)


def _is_flat(value: list[Any] | dict[Any, Any]) -> bool:
    if isinstance(value, dict) and not _SCALARS.issuperset(map(type, value.values())):
        return False
    return _SCALARS.issuperset(map(type, value))


def _jsonable(value: Any) -> Any:
    refuse_hidden(value)
    try:
        return codec.write_text(value)
    except TypeError:
        return to_jsonable_python(value)


_encode_anything = json.JSONEncoder(default=_jsonable).encode


def _members(annotation: Any) -> frozenset[Any]:
    union = get_origin(annotation) in (Union, types.UnionType)
    members = get_args(annotation) if union else (types.NoneType if annotation is None else annotation,)
    return frozenset(member for member in members if isinstance(member, type))


def _code_of(function: Callable[..., Any]) -> tuple[str, ...]:
    return getattr(getattr(function, "__code__", None), "co_freevars", ())
