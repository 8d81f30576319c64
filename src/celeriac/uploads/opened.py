"""What a task gets for a reference: the ``UploadFile`` that FastAPI's users know, on the stored content.

Imports FastAPI; whoever has a task with such a parameter has it loaded.
"""

from __future__ import annotations

import os
from typing import BinaryIO

from fastapi import UploadFile
from starlette.datastructures import Headers

from celeriac.uploads.reference import Reference

__all__ = ["StoredUpload"]


class StoredUpload(UploadFile):
    """An upload in the storage, open for one attempt. ``filename`` is what its sender said, and no path."""

    def __init__(self, file: BinaryIO, reference: Reference) -> None:
        headers = Headers({"content-type": reference.content_type} if reference.content_type else {})
        size = reference.size if reference.size is not None else _size_of(file)
        super().__init__(file, size=size, filename=reference.filename, headers=headers)
        self.reference = reference


def _size_of(file: BinaryIO) -> int | None:
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
    except (OSError, ValueError):
        return None
    return size
