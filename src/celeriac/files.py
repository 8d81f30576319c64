"""Parameters of tasks that take files: ``UploadFile`` and ``bytes``, by themselves, optional, or in lists.

A file travels as a reference; who publishes has the content stored, and who runs the task has it opened.
"""

from __future__ import annotations

import sys
import types
from collections import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from celeriac.annotations import Converter, converter_of
from celeriac.errors import InvalidArguments
from celeriac.uploads.reference import PendingUpload, Reference, is_reference, references_in

__all__ = ["FileConverter", "converter_for", "is_upload", "kept", "pending_in", "refuse_open_files"]

_LISTS = (list, tuple, set, frozenset, abc.Sequence, abc.Iterable, abc.Collection)


class FileConverter(Converter):
    """Converts what may be a file: to a reference, and from what was opened for it.

    ``as_bytes`` says that the task wants the content, and no open file.
    """

    __slots__ = ("as_bytes",)

    def __init__(self, converter: Converter, *, as_bytes: bool) -> None:
        super().__init__(converter.adapter, converter.exact, converter.open)
        self.as_bytes = as_bytes

    def dump(self, value: Any) -> Any:
        """A value as JSON: an open file becomes a :class:`PendingUpload`. Raises as ``Converter.dump`` does."""
        if not _has(value, _is_file):
            return super().dump(value)
        if self.adapter is not None and not self.as_bytes and not _has(value, is_reference):
            self.adapter.validate_python(value)
        return _changed(value, _as_json)


def converter_for(annotation: Any) -> Converter:
    """The converter of a parameter's annotation."""
    leaves = list(_leaves(annotation))
    uploads = any(is_upload(leaf) for leaf in leaves)
    converter = converter_of(annotation)
    if uploads or bytes in leaves:
        return FileConverter(converter, as_bytes=not uploads)
    return converter


def is_upload(kind: Any) -> bool:
    """Whether it is starlette's ``UploadFile`` or FastAPI's; who has annotated with it has loaded it."""
    starlette = sys.modules.get("starlette.datastructures")
    return starlette is not None and isinstance(kind, type) and issubclass(kind, starlette.UploadFile)


def _leaves(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _leaves(get_args(annotation)[0])
    elif origin in (Union, types.UnionType) or origin in _LISTS:
        for argument in get_args(annotation):
            yield from _leaves(argument)
    else:
        yield annotation


def _is_file(value: Any) -> bool:
    return is_upload(type(value)) or is_reference(value)


def _has(value: Any, what: Callable[[Any], bool]) -> bool:
    return any(map(what, value)) if isinstance(value, (list, tuple)) else what(value)


def _changed(value: Any, change: Callable[[Any], Any]) -> Any:
    return [change(each) for each in value] if isinstance(value, (list, tuple)) else change(value)


def _as_json(value: Any) -> Any:
    if isinstance(value, PendingUpload):
        return value
    if is_upload(type(value)):
        return PendingUpload(value)
    return Reference.parse(value).as_json() if is_reference(value) else value


def pending_in(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[PendingUpload]:
    """The files among a call's arguments whose content is still to be stored."""
    found = references_in(*args, *kwargs.values())
    return [reference for reference in found if isinstance(reference, PendingUpload)]


def refuse_open_files(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise InvalidArguments where somebody who cannot store files has one among a call's arguments."""
    if pending_in(args, kwargs):
        raise InvalidArguments(
            f"{name} was given an open file, which only `await task.enqueue(…)` can send:"
            " .delay(), .apply_async() and canvas cannot store its content."
        )


def kept(value: Any) -> Any:
    """A reference for the next attempt: that of a file which the task was sent is its own again.

    Raises InvalidArguments for another open file.
    """
    if isinstance(value, PendingUpload):
        reference = getattr(value.file, "reference", None)
        if reference is None:
            raise InvalidArguments("A retry can take the files that the task was sent, and no others.")
        return reference.as_json()
    return [kept(each) for each in value] if isinstance(value, list) else value
