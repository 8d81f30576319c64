"""A folder of fsspec's, on this machine or elsewhere, used without asyncio: every call here may wait.

The only file that knows fsspec.
"""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from celeriac.errors import (
    CeleriacError,
    ConfigurationError,
    InvalidArguments,
    StorageUnavailable,
    UploadGone,
)
from celeriac.uploads.reference import Reference

__all__ = ["Place"]

_CHUNK = 1 << 20

#: A content's name: its key, and the id of the task that it was sent to. No other task can open it.
_NAME = re.compile(
    r"(?P<key>[0-9a-f]{44})\.(?P<task>[A-Za-z0-9_-]{1,128}|~[A-Za-z0-9_-]{1,172})(?P<part>\.part)?"
)
_PLAIN_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


class Place:
    """Where contents are. Nothing happens before the first use.

    Args:
        url: A folder, or a URL that fsspec knows: ``s3://bucket/prefix``, ``memory://uploads``.
        options: What fsspec's file system takes: keys, endpoints, …
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._url = url
        self._options = dict(options)
        self._lock = Lock()
        self._opened: tuple[Any, str, bool] | None = None

    def write(self, task_id: str, reference: Reference, source: Any, count: Callable[[int], None]) -> None:
        """Copy an open file into a new content. ``count`` hears of each chunk's size, and may raise.

        What was written is gone again if anything is raised.
        """
        fs, _, local = self._connected()
        path = self._path(task_id, reference)
        with _translated(f"{self._url} did not take an upload"):
            written = f"{path}.part" if local else path
            # Object stores show nothing before it is complete; a folder does.
            target = Path(written).open("wb") if local else fs.open(path, "wb")  # noqa: SIM115 - below
            try:
                with target:
                    while chunk := source.read(_CHUNK):
                        count(len(chunk))
                        target.write(chunk)
                if local:
                    Path(written).replace(path)
            except BaseException:
                with contextlib.suppress(Exception):
                    self._remove(written)
                raise

    def open(self, task_id: str, reference: Reference) -> BinaryIO:
        """Open a content. Raises UploadGone."""
        fs, _, local = self._connected()
        path = self._path(task_id, reference)
        with _translated(f"{self._url} did not open an upload"):
            try:
                return Path(path).open("rb") if local else fs.open(path, "rb")
            except FileNotFoundError:
                raise UploadGone(
                    f"The content of the upload {reference.filename or reference.key!r} is not in {self._url}:"
                    " it is deleted after the task's last attempt, and API and workers need the same"
                    " celeriac_upload_url."
                ) from None

    def read(self, task_id: str, reference: Reference) -> bytes:
        """A whole content. Raises UploadGone."""
        with self.open(task_id, reference) as file, _translated(f"{self._url} did not read an upload"):
            return file.read()

    def exists(self, task_id: str, reference: Reference) -> bool:
        """Whether the content is there."""
        fs, _, _ = self._connected()
        with _translated(f"{self._url} did not answer"):
            fs.invalidate_cache()
            return bool(fs.exists(self._path(task_id, reference)))

    def delete(self, task_id: str, reference: Reference) -> None:
        """Delete a content, if it is there."""
        self._connected()
        with _translated(f"{self._url} did not delete an upload"):
            self._remove(self._path(task_id, reference))

    def contents(self) -> Iterator[tuple[str, str, str]]:
        """Key, task id and path of all contents, half-written ones too; what else is in the folder is not ours."""
        fs, root, _ = self._connected()
        with _translated(f"{self._url} could not be listed"):
            fs.invalidate_cache()
            try:
                paths = fs.ls(root, detail=False)
            except FileNotFoundError:
                return
        for path in paths:
            if found := _NAME.fullmatch(path.rsplit("/", 1)[-1]):
                yield found["key"], _id_of(found["task"]), path

    def remove(self, path: str) -> None:
        """Delete one of :meth:`contents`."""
        with _translated(f"{self._url} did not delete an upload"):
            self._remove(path)

    def _connected(self) -> tuple[Any, str, bool]:
        """The file system, the folder in it, and whether it is this machine's."""
        with self._lock:
            if self._opened is None:
                self._opened = self._connect()
            return self._opened

    def _connect(self) -> tuple[Any, str, bool]:
        try:
            from fsspec.core import url_to_fs
            from fsspec.implementations.local import LocalFileSystem
        except ImportError:
            raise ConfigurationError(
                'Uploads need fsspec: install it with pip install "celeriac[uploads]".'
            ) from None
        try:
            fs, root = url_to_fs(self._url, **self._options)
        except (ImportError, ValueError, TypeError) as exc:
            raise ConfigurationError(f"celeriac_upload_url {self._url!r} cannot be used: {exc}") from exc
        local = isinstance(fs, LocalFileSystem)
        with _translated(f"{self._url} cannot be opened"):
            if local:
                Path(root).mkdir(parents=True, exist_ok=True)
        return fs, root.rstrip("/"), local

    def _path(self, task_id: str, reference: Reference) -> str:
        _, root, _ = self._connected()
        return f"{root}/{reference.key}.{_name_of(task_id)}"

    def _remove(self, path: str) -> None:
        fs, _, local = self._connected()
        with contextlib.suppress(FileNotFoundError):
            if local:
                Path(path).unlink()
            else:
                fs.rm_file(path)


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """File systems raise whatever their libraries do: OSError, botocore's errors, aiohttp's."""
    try:
        yield
    except CeleriacError:
        raise
    except Exception as exc:
        raise StorageUnavailable(f"{what}: {type(exc).__name__}: {exc}") from exc


def _name_of(task_id: str) -> str:
    """A task's id as a part of a file's name: ids of a caller's own may be anything."""
    if _PLAIN_ID.fullmatch(task_id):
        return task_id
    encoded = task_id.encode()
    if len(encoded) > 128:
        raise InvalidArguments("The id of a task with uploads has at most 128 bytes.")
    return "~" + base64.urlsafe_b64encode(encoded).decode().rstrip("=")


def _id_of(name: str) -> str:
    if not name.startswith("~"):
        return name
    with contextlib.suppress(ValueError):
        return base64.urlsafe_b64decode(name[1:] + "=" * (-len(name[1:]) % 4)).decode()
    return name
