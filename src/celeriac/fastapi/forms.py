"""The arguments of a task that takes files as a form, ``multipart/form-data``, made from its signature."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable, Collection, Mapping
from importlib.util import find_spec
from typing import Annotated, Any, Union, get_args, get_origin, is_typeddict

from fastapi import Depends, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, Json
from pydantic.fields import FieldInfo

from celeriac.errors import ConfigurationError
from celeriac.fastapi.bodies import annotation_of
from celeriac.files import FileConverter, converter_for, is_upload
from celeriac.task import Task

__all__ = ["FormBody"]

_Kind = inspect.Parameter

_LISTS = (list, tuple, set, frozenset)


class FormBody:
    """The body of the requests that call a task which takes files.

    Files are files, single values and lists of them are fields, and what only JSON can express (a pydantic model, a
    dict) is a field that holds JSON. Unknown fields are refused, as they are in any other call.

    Raises ConfigurationError for a parameter that no form can fill, and without python-multipart.
    """

    def __init__(self, task: Task[..., Any]) -> None:
        if find_spec("python_multipart") is None:
            raise ConfigurationError(
                f"{task.name} takes a file, and python-multipart is missing, which reads forms: install it with"
                ' pip install "celeriac[uploads]".'
            )
        self._parameters = task.schema.parameters
        # Under names of ours: the dependency has a parameter of its own.
        self._names = {f"argument_{index}": each.name for index, each in enumerate(self._parameters)}
        fields = [
            _field(field, task, parameter)
            for field, parameter in zip(self._names, self._parameters, strict=True)
        ]
        #: ``body`` for the signature of an endpoint.
        self.parameter = _Kind("body", _Kind.KEYWORD_ONLY, default=Depends(self._reader(fields)))

    def arguments(self, body: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """The call that a form asks for; what it leaves out is left out of the call."""
        given = dict(body)
        only_positional = [each for each in self._parameters if each.kind is _Kind.POSITIONAL_ONLY]
        while only_positional and only_positional[-1].name not in given:
            only_positional.pop()
        return [given.pop(each.name, each.default) for each in only_positional], given

    def place(self, location: tuple[str | int, ...]) -> tuple[str | int, ...]:
        """Where in the request that is which is at ``location`` in the arguments."""
        return ("body", *location)

    def _reader(self, fields: list[inspect.Parameter]) -> Callable[..., Any]:
        names = self._names

        async def read(request: Request, **values: Any) -> dict[str, Any]:
            sent = (await request.form()).keys()  # FastAPI has read it by now
            _refuse_unknown(sent, names.values())
            return {name: values[field] for field, name in names.items() if name in sent}

        request = _Kind("request", _Kind.POSITIONAL_OR_KEYWORD, annotation=Request)
        read.__signature__ = inspect.Signature([request, *fields])  # type: ignore[attr-defined]
        return read


def _refuse_unknown(sent: Collection[str], known: Collection[str]) -> None:
    if unknown := [name for name in sent if name not in known]:
        message = "Extra inputs are not permitted"
        raise RequestValidationError(
            [
                {"type": "extra_forbidden", "loc": ("body", name), "msg": message, "input": None}
                for name in unknown
            ]
        )


def _field(field: str, task: Task[..., Any], parameter: inspect.Parameter) -> inspect.Parameter:
    """A parameter of the task as one that FastAPI fills from a form."""
    written = annotation_of(task, parameter, _with_uploads)
    name, default, description = parameter.name, parameter.default, _description(written)
    annotation: Any
    if isinstance(converter_for(written), FileConverter):
        annotation = Annotated[_bare(written), File(alias=name, description=description)]
    elif _needs_json(written):
        annotation = Annotated[_json(written), Form(alias=name, description=description or "As JSON.")]
    else:
        annotation = Annotated[written, Form(alias=name)]
        return _Kind(field, _Kind.KEYWORD_ONLY, annotation=annotation, default=default)
    # What a form leaves out is left out of the call, whatever stands here.
    default = default if default is _Kind.empty else None
    return _Kind(field, _Kind.KEYWORD_ONLY, annotation=annotation, default=default)


def _with_uploads(annotation: Any) -> Any:
    """An annotation with FastAPI's ``UploadFile`` for each file: bytes, too, must not fill the memory."""
    if not isinstance(converter_for(annotation), FileConverter):
        return annotation
    origin = get_origin(annotation)
    if origin is Annotated:
        # What is said of the bytes is checked when the task has them.
        described = _description(annotation)
        inner = _with_uploads(get_args(annotation)[0])
        return Annotated.__class_getitem__((inner, Field(description=described))) if described else inner
    if origin in (Union, types.UnionType):
        return Union[tuple(_with_uploads(each) for each in get_args(annotation))]  # noqa: UP007 - at run time
    if origin is not None and get_args(annotation):
        return list[_with_uploads(get_args(annotation)[0])]  # type: ignore[misc]
    return UploadFile if annotation is bytes or is_upload(annotation) else annotation


def _json(annotation: Any) -> Any:
    marker: Any = Json  # what is between the brackets is known at run time alone
    return marker[annotation]


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _needs_json(annotation: Any) -> bool:
    """Whether no field of a form, and no number of fields of one name, can hold it."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _needs_json(get_args(annotation)[0])
    if origin in (Union, types.UnionType) or origin in _LISTS:
        return any(_needs_json(each) for each in get_args(annotation) if each is not types.NoneType)
    kind = origin or annotation
    if not isinstance(kind, type):
        return is_typeddict(kind)
    return issubclass(kind, (BaseModel, Mapping)) or dataclasses.is_dataclass(kind) or is_typeddict(kind)


def _description(annotation: Any) -> str | None:
    if get_origin(annotation) is not Annotated:
        return None
    infos = [each for each in get_args(annotation)[1:] if isinstance(each, FieldInfo)]
    return next((each.description for each in infos if each.description), None)
