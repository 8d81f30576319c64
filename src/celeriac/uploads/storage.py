"""The storage of uploads for an event loop: contents are written, opened and deleted in threads of their own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import Any, BinaryIO, TypeVar
from weakref import WeakKeyDictionary

from celeriac.errors import (
    CeleriacError,
    InvalidArguments,
    PublishTimeout,
    StorageUnavailable,
    UploadTooLarge,
)
from celeriac.uploads.place import Place
from celeriac.uploads.reference import PendingUpload, Reference, made_at

__all__ = ["Spooled", "Storage"]

logger = logging.getLogger("celeriac.uploads")

T = TypeVar("T")

#: Contents that one process moves at a time; a slow storage must not take the threads of everything else.
_THREADS = 8

#: Held by who reads a file.
_READING: WeakKeyDictionary[Any, Lock] = WeakKeyDictionary()

#: A file, and the id of the task that it goes to.
Spooled = tuple[str, PendingUpload]


class Storage:
    """Keeps the content of uploads under their references. Belongs to no event loop.

    Args:
        url: A folder, or a URL of fsspec's.
        limit: Bytes that the files of one call may have together; ``None`` means no limit.
        options: What fsspec's file system takes.
    """

    def __init__(
        self, url: str, *, limit: int | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        self.limit = limit
        self.place = Place(url, options or {})
        self._threads: ThreadPoolExecutor | None = None

    async def store(self, uploads: Sequence[Spooled]) -> None:
        """Copy open files into the storage, from their beginnings; all or none.

        Raises UploadTooLarge, StorageUnavailable.
        """
        tally = _Tally(self.limit)
        tally.foresee(pending.reference.size or 0 for _, pending in uploads)
        try:
            for task_id, pending in uploads:
                undo = partial(self._forget, [(task_id, pending)])
                await self._run(partial(self._write, task_id, pending, tally), undo)
        except asyncio.CancelledError:
            tally.stopped = True
            self._forget(uploads)
            raise
        except BaseException:
            await self.take_back(uploads)
            raise

    @contextlib.asynccontextmanager
    async def holding(self, uploads: Sequence[Spooled]) -> AsyncIterator[None]:
        """Have these files in the storage while their tasks are published; take them back if that fails.

        Where nobody knows whether the broker has the task they stay, and the workers' sweep looks after them.
        """
        await self.store(uploads)
        try:
            yield
        except (PublishTimeout, asyncio.CancelledError):
            raise
        except BaseException:
            await self.take_back(uploads)
            raise

    async def lend(self, uploads: Sequence[Spooled], call: Callable[[], Awaitable[T]]) -> T:
        """Have these files in the storage while ``call`` lasts, which runs their tasks."""
        await self.store(uploads)
        try:
            return await call()
        finally:
            await self.take_back(uploads)

    async def take_back(self, uploads: Sequence[Spooled]) -> None:
        """Delete the content of files whose tasks were not published. Raises nothing: the sweep comes later."""
        for task_id, pending in uploads:
            await self.discard(task_id, [pending.reference])

    async def open(self, task_id: str, reference: Reference) -> BinaryIO:
        """The content, open for reading. Raises UploadGone, StorageUnavailable."""
        return await self._run(lambda: self.place.open(task_id, reference), lambda file: file.close())

    async def read(self, task_id: str, reference: Reference) -> bytes:
        """The whole content. Raises as :meth:`open` does."""
        return await self._run(partial(self.place.read, task_id, reference))

    async def close(self, files: Iterable[BinaryIO]) -> None:
        """Close what :meth:`open` has opened."""
        for file in files:
            await self._run(file.close)

    async def missing(self, task_id: str, references: Iterable[Reference]) -> list[Reference]:
        """Which of these have no content any more. Raises StorageUnavailable."""
        return await self._run(lambda: [each for each in references if not self.place.exists(task_id, each)])

    async def discard(self, task_id: str, references: Collection[Reference]) -> None:
        """Delete contents. Raises nothing: what is left over is logged, and the sweep comes later."""
        for reference in references:
            try:
                await self._run(partial(self.place.delete, task_id, reference))
            except CeleriacError as exc:
                logger.warning("An upload of task %s was not deleted: %s", task_id, exc)

    async def contents(self, before: float) -> list[tuple[str, str]]:
        """Task id and path of all contents that were stored before this time, in epoch seconds."""
        return await self._run(
            lambda: [(task_id, path) for key, task_id, path in self.place.contents() if made_at(key) < before]
        )

    async def remove(self, paths: Sequence[str]) -> None:
        """Delete some of :meth:`contents`. Raises StorageUnavailable."""
        for path in paths:
            await self._run(partial(self.place.remove, path))

    def _write(self, task_id: str, pending: PendingUpload, tally: _Tally) -> None:
        source = pending.file.file
        if source.closed:
            raise InvalidArguments(
                f"The upload {pending.reference.filename!r} is closed; pass it while it is open."
            )
        # Somebody may send one file to two tasks at once, and it has one position.
        with _READING.setdefault(pending.file, Lock()):
            if source.seekable():
                source.seek(0)
            self.place.write(task_id, pending.reference, source, tally.add)
            if source.seekable():
                source.seek(0)

    def _forget(self, uploads: Sequence[Spooled], _written: None = None) -> None:
        """Delete contents when what is under way is done, for somebody who does not wait any more."""
        for task_id, pending in uploads:
            self._executor.submit(_quietly, partial(self.place.delete, task_id, pending.reference))

    async def _run(self, function: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
        """Call it in a thread. What comes of it when nobody waits any more is given to ``undo``."""
        future = self._executor.submit(function)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if undo is not None:
                future.add_done_callback(partial(_undone, undo))
            raise

    @property
    def _executor(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="celeriac-uploads")
        return self._threads


class _Tally:
    """How many bytes a call has brought so far."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._bytes = 0
        self.stopped = False

    def foresee(self, sizes: Iterable[int]) -> None:
        """Refuse at once what says itself that it is too large."""
        self._check(sum(sizes))

    def add(self, size: int) -> None:
        if self.stopped:
            raise StorageUnavailable("Nobody waits for this upload any more.")
        self._bytes += size
        self._check(self._bytes)

    def _check(self, size: int) -> None:
        if self._limit is not None and size > self._limit:
            raise UploadTooLarge(
                f"The upload has more than the {self._limit:,} bytes of celeriac_upload_limit."
            )


def _undone(undo: Callable[[Any], object], future: Any) -> None:
    if not future.cancelled() and future.exception() is None:
        undo(future.result())


def _quietly(function: Callable[[], object]) -> None:
    try:
        function()
    except CeleriacError as exc:
        logger.warning("An upload was not deleted: %s", exc)
