"""Secrets of pydantic's, which become asterisks when they are written: nothing that a task could work with."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel, PlainSerializer, SecretBytes, SecretStr, WrapSerializer

__all__ = ["hides", "refuse_hidden"]

_SECRETS = (SecretStr, SecretBytes)


def hides(annotation: Any, within: tuple[type, ...] = ()) -> bool:
    """Whether an annotation is a secret or has one in it, that no serializer of its own writes."""
    if isinstance(annotation, type) and issubclass(annotation, _SECRETS):
        return True
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        inner = () if annotation in within else _as_they_are(annotation)
        return any(hides(each, (*within, annotation)) for each in inner)
    return any(hides(each, within) for each in get_args(annotation))


def refuse_hidden(value: Any) -> None:
    """Raise ValueError for a secret, in whatever it is."""
    if isinstance(value, BaseModel) and _model_hides(type(value)):
        value = (
            value.model_dump()
        )  # as Python's values: what a serializer of its own writes is no secret any more
    if _is_hidden(value):
        raise ValueError("a secret would arrive as asterisks; send what it is found by")


_model_hides = cache(hides)


def _is_hidden(value: Any) -> bool:
    if isinstance(value, _SECRETS):
        return True
    if isinstance(value, Mapping):
        return any(_is_hidden(each) for each in value.values())
    return isinstance(value, (list, tuple, set, frozenset)) and any(_is_hidden(each) for each in value)


def _as_they_are(model: type[BaseModel]) -> list[Any]:
    """What annotates the fields that the model has no word of its own for when it is written."""
    decorators = model.__pydantic_decorators__
    if decorators.model_serializers:
        return []
    told = {name for each in decorators.field_serializers.values() for name in each.info.fields}
    return [
        field.annotation
        for name, field in model.model_fields.items()
        if not {name, "*"} & told
        and not any(isinstance(each, (PlainSerializer, WrapSerializer)) for each in field.metadata)
    ]
