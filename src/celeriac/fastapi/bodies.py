"""A task's arguments as the body of a request, made from its signature."""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Union, get_args, get_origin
from weakref import WeakKeyDictionary

from fastapi import Body
from fastapi.exceptions import RequestValidationError
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    create_model,
)
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUserError
from pydantic.fields import FieldInfo

from celeriac.arguments import ArgumentSchema
from celeriac.errors import ConfigurationError
from celeriac.masking import hides
from celeriac.task import Task

__all__ = ["CallBody", "annotation_of", "refuse_unreadable"]

#: How deep the arguments of a call may be nested: what shows records goes no deeper than twice that.
_DEEPEST = 100

#: The models of what tasks take, by their names: two of one name would get two others in the OpenAPI document.
_models: WeakKeyDictionary[ArgumentSchema, dict[str, type[BaseModel]]] = WeakKeyDictionary()

_written = json.JSONEncoder(default=repr, ensure_ascii=False).encode

_Kind = inspect.Parameter
_VARIADIC: Mapping[Any, str] = {_Kind.VAR_POSITIONAL: "*", _Kind.VAR_KEYWORD: "**"}


class CallBody:
    """The body of the requests that call a task.

    A task that takes one pydantic model takes it as the body. The arguments of any other are the fields of one model,
    under their own names; unknown ones are refused, as they are in any other call.

    ``name`` is what that model is named after. Raises ConfigurationError for a parameter that no JSON can fill.
    """

    def __init__(self, task: Task[..., Any], name: str) -> None:
        self._parameters = task.schema.parameters
        annotations = {each.name: annotation_of(task, each) for each in self._parameters}
        self._whole = len(annotations) == 1 and _is_model(*annotations.values())
        #: ``body`` for the signature of an endpoint; ``None`` for a task that takes nothing.
        self.parameter: inspect.Parameter | None = None
        self._names: Mapping[str, str] = {}
        if self._whole:
            (only,) = self._parameters
            self.parameter = _endpoint_parameter(annotations[only.name], only.default)
        elif self._parameters:
            # Under names of ours: a parameter may be called what a model must not have as a field.
            self._names = {f"argument_{index}": name for index, name in enumerate(annotations)}
            models = _models.setdefault(task.schema, {})
            model = models[name] = models.get(name) or self._model(task, name, annotations)
            optional = all(each.default is not _Kind.empty for each in self._parameters)
            default = Body(default_factory=model) if optional else _Kind.empty
            self.parameter = _endpoint_parameter(model, default)

    def arguments(self, body: Any) -> tuple[list[Any], dict[str, Any]]:
        """The call that a body asks for; what it leaves out is left out of the call."""
        if self._whole:
            given = {self._parameters[0].name: body}
        else:
            fields = body.model_fields_set if isinstance(body, BaseModel) else ()
            given = {self._names[field]: getattr(body, field) for field in self._names if field in fields}
        only_positional = [each for each in self._parameters if each.kind is _Kind.POSITIONAL_ONLY]
        while only_positional and only_positional[-1].name not in given:
            only_positional.pop()
        return [given.pop(each.name, each.default) for each in only_positional], given

    def place(self, location: tuple[str | int, ...]) -> tuple[str | int, ...]:
        """Where in the request that is which is at ``location`` in the arguments."""
        return ("body", *(location[1:] if self._whole else location))

    def _model(self, task: Task[..., Any], name: str, annotations: Mapping[str, Any]) -> type[BaseModel]:
        fields: dict[str, Any] = {}
        for field, parameter in zip(self._names, self._parameters, strict=True):
            default = ... if parameter.default is _Kind.empty else parameter.default
            alias = parameter.name
            info = Field(default, alias=alias, validation_alias=alias, serialization_alias=alias)
            fields[field] = (annotations[alias], info)
        words = re.split(r"\W|_", name)
        return create_model(
            "".join(word[:1].upper() + word[1:] for word in words) + "Arguments",
            __config__=ConfigDict(extra="forbid"),
            __doc__=f"The arguments of the task {task.name}.",
            __module__=task.function.__module__,
            **fields,
        )


def refuse_unreadable(args: list[Any], kwargs: dict[str, Any]) -> None:
    """Raise RequestValidationError for JSON that can be read, but not be shown to anybody in the task's record."""
    text = _written([args, kwargs])
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _unreadable("string_unicode", "A text has half of a surrogate pair in it") from None
    if text.count("[") + text.count("{") > _DEEPEST and _depth([args, kwargs]) > _DEEPEST:
        raise _unreadable("too_deep", f"Values may be nested {_DEEPEST} deep")


def _unreadable(kind: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"type": kind, "loc": ("body",), "msg": message, "input": None}])


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, (dict, list))
        ]
    return depth


def _endpoint_parameter(annotation: Any, default: Any) -> inspect.Parameter:
    return _Kind("body", _Kind.KEYWORD_ONLY, annotation=annotation, default=default)


def annotation_of(
    task: Task[..., Any], parameter: inspect.Parameter, change: Callable[[Any], Any] = lambda it: it
) -> Any:
    """The annotation of a parameter that a body can fill, changed. Raises ConfigurationError for any other."""
    where = (
        f"{task.name} cannot be exposed: its parameter {_VARIADIC.get(parameter.kind, '')}{parameter.name}"
    )
    if parameter.kind in _VARIADIC:
        raise ConfigurationError(
            f"{where} has no place in a JSON body; take a list, a dict or a pydantic model instead."
        )
    try:
        annotation = change(task.schema.annotation(parameter))
    except Exception as exc:
        raise ConfigurationError(
            f"{where} is annotated with {parameter.annotation!r}, which cannot be resolved ({exc});"
            " define it before the task is exposed, in the task's module."
        ) from exc
    try:
        TypeAdapter(annotation).json_schema()
    except (PydanticUserError, PydanticInvalidForJsonSchema) as exc:
        raise ConfigurationError(
            f"{where} is of a type that no JSON describes ({annotation!r});"
            " make it a dependency or a TaskContext, or give it a type that pydantic knows."
        ) from exc
    if hides(annotation):
        raise ConfigurationError(
            f"{where} is a secret or has one in it, which would arrive as asterisks;"
            " let the task take what the secret is found by."
        )
    if _is_fields_default(annotation, parameter.default):
        raise ConfigurationError(
            f"{where} has its default inside of a Field(), where Python, which calls the task, does not look;"
            " write it after the = by itself, and what else is said of the parameter in Annotated[…]."
        )
    return annotation


def _is_fields_default(annotation: Any, default: Any) -> bool:
    if isinstance(default, FieldInfo):
        return True
    found = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    infos = [each for each in found if isinstance(each, FieldInfo)]
    return default is _Kind.empty and not all(each.is_required() for each in infos)


def _is_model(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        return _is_model(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        members = [each for each in get_args(annotation) if each is not types.NoneType]
        return len(members) == 1 and _is_model(members[0])
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
