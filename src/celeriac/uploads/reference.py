"""What stands in a message for a file: where its content is, and what its sender said of it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["PendingUpload", "Reference", "is_reference", "made_at", "new_key", "references_in"]

_MARK = "__upload__"

#: Milliseconds since the epoch, and 128 random bits. Nothing else is ever looked up in a storage.
_KEY = re.compile(r"[0-9a-f]{44}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A file in the storage. All but ``key`` is what its sender said, and means nothing to the storage.

    ``size`` is in bytes, ``None`` where nobody has measured it.
    """

    key: str
    filename: str | None = None
    content_type: str | None = None
    size: int | None = None

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> Reference:
        """The reference that JSON expresses. Raises ValueError for what no publisher of ours has written."""
        fields = value[_MARK]
        if not isinstance(fields, Mapping) or not isinstance(key := fields.get("key"), str):
            raise ValueError("the reference to an upload has no key")
        if _KEY.fullmatch(key) is None:
            raise ValueError(f"{key[:64]!r} is no key of an upload")
        filename, content_type, size = fields.get("filename"), fields.get("content_type"), fields.get("size")
        if not all(text is None or isinstance(text, str) for text in (filename, content_type)):
            raise ValueError("the name and the type of an upload are text")
        if size is not None and (type(size) is not int or size < 0):
            raise ValueError("the size of an upload is a number of bytes")
        return cls(key, filename, content_type, size)

    def as_json(self) -> dict[str, Any]:
        """The reference as it travels."""
        return {_MARK: asdict(self)}


class PendingUpload(dict[str, Any]):
    """The reference to an open file whose content is not in the storage yet: JSON, and the file.

    ``file`` is a starlette ``UploadFile``.
    """

    def __init__(self, file: Any) -> None:
        self.file = file
        size = file.size if file.size is not None else _measured(file.file)
        self.reference = Reference(new_key(), file.filename, file.content_type, size)
        super().__init__(self.reference.as_json())


def _measured(file: Any) -> int | None:
    try:
        size = int(file.seek(0, os.SEEK_END))
        file.seek(0)
    except (OSError, ValueError):  # a pipe
        return None
    return size


def new_key() -> str:
    """A key that nobody can guess, and that says when it was made."""
    return f"{int(time.time() * 1000):012x}{os.urandom(16).hex()}"


def made_at(key: str) -> float:
    """When a key was made, in epoch seconds."""
    return int(key[:12], 16) / 1000


def is_reference(value: Any) -> bool:
    """Whether a JSON value stands for a file; :meth:`Reference.parse` says whether for a real one."""
    return isinstance(value, Mapping) and len(value) == 1 and _MARK in value


def references_in(*values: Any) -> Iterator[Mapping[str, Any]]:
    """The references among values of a call, and in lists of them."""
    for value in values:
        if is_reference(value):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from references_in(*value)
