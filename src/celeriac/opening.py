"""From references to open files, for the one attempt that they are opened for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from celeriac.arguments import ArgumentSchema
from celeriac.errors import InvalidArguments
from celeriac.files import FileConverter
from celeriac.uploads.place import Place
from celeriac.uploads.reference import Reference, is_reference, references_in

__all__ = ["opened_here", "put_in", "upload", "wanted"]

_Arguments = tuple[Sequence[Any], Mapping[str, Any]]


def wanted(schema: ArgumentSchema, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[Reference, bool]:
    """The references among a call's arguments, and whether the task wants the bytes and no open file.

    Raises InvalidArguments for what is no reference of ours: nothing is opened for it.
    """
    found: dict[Reference, bool] = {}

    def note(converter: FileConverter, value: Any) -> None:
        for reference in references_in(value):
            try:
                found[Reference.parse(reference)] = converter.as_bytes
            except ValueError as exc:
                raise InvalidArguments(f"The task was sent no upload: {exc}.") from exc

    schema.map_files(args, kwargs, note)
    return found


def put_in(
    schema: ArgumentSchema, args: Sequence[Any], kwargs: Mapping[str, Any], opened: Mapping[Reference, Any]
) -> _Arguments:
    """The arguments with what was opened instead of the references."""

    def opened_of(value: Any) -> Any:
        if is_reference(value):
            return opened[Reference.parse(value)]
        return [opened_of(each) for each in value] if isinstance(value, (list, tuple)) else value

    return schema.map_files(args, kwargs, lambda _, value: opened_of(value))


def upload(file: BinaryIO, reference: Reference) -> Any:
    """The ``UploadFile`` on an open content."""
    # FastAPI is loaded by now: the task's annotation names its class, or starlette's.
    from celeriac.uploads.opened import StoredUpload

    return StoredUpload(file, reference)


@contextlib.contextmanager
def opened_here(
    place: Place, schema: ArgumentSchema, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[_Arguments]:
    """The arguments with their files open while the context lasts, for code that may wait.

    Raises InvalidArguments, UploadGone, StorageUnavailable.
    """
    with contextlib.ExitStack() as stack:
        opened: dict[Reference, Any] = {}
        for reference, as_bytes in wanted(schema, args, kwargs).items():
            if as_bytes:
                opened[reference] = place.read(task_id, reference)
            else:
                opened[reference] = upload(stack.enter_context(place.open(task_id, reference)), reference)
        yield put_in(schema, args, kwargs, opened)
