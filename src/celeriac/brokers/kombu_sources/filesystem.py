"""kombu's filesystem transport: a file for each message, in a way that a killed process loses nothing.

A message is written under another name and renamed when it is whole. Who takes one renames it into a folder of its own,
with the time in its name, where it stays until it is kept elsewhere; what stays longer than a lease goes back.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

from celeriac.brokers.base import Capabilities
from celeriac.brokers.kombu_sources.base import Outgoing, Source, Taken
from celeriac.brokers.kombu_sources.envelopes import fair_share, texts
from celeriac.config import working_folder
from celeriac.errors import BrokerUnavailable

__all__ = ["FilesystemSource"]

#: Seconds after which a file that is no message is not being written any more.
_WRITING = 5.0

#: Seconds after which a file that is being written belongs to a dead process.
_ABANDONED = 600.0

#: Seconds between two looks for what a dead process has left.
_SWEEP = 2.0

#: Seconds between two looks into the folder; a look that finds it unchanged costs one call of the system.
_POLLING = 0.1

#: Of a folder that was changed so recently (seconds), its time may not tell of the last change.
_COARSE = 0.05

_TAKEN = "celeriac-taken"
_NEW = ".celeriac-new"


class FilesystemSource(Source):
    """The folders of ``filesystem://`` URLs, with kombu's options ``data_folder_in``, ``data_folder_out``, …"""

    capabilities: ClassVar[Capabilities] = Capabilities(
        delay=False,
        priority=False,
        lease=False,
        delivery_count=False,
        dead_letters=False,
        atomic=False,
        any_text=False,
    )
    polling_interval = _POLLING

    def __init__(self, url: str, *, options: Mapping[str, Any] | None = None, lease: float = 30.0) -> None:
        super().__init__(url, options=options, lease=lease)
        # A relative folder is where the process was started, whatever folder it changes to.
        here = Path(working_folder())
        out = self.options.get("data_folder_out") or "data_out"
        self._out = here / out
        # kombu's default is another folder, from which nobody would ever read what is published.
        self._in = here / (self.options.get("data_folder_in") or out)
        processed = self.options.get("processed_folder") or "processed"
        self._processed = here / processed if self.options.get("store_processed") else None
        self._taken = self._in / _TAKEN
        self._numbers = itertools.count()
        self._own = uuid4().hex
        self._turn = 0
        self._swept = 0.0
        self._seen: tuple[int, frozenset[str]] | None = None

    @property
    def place(self) -> str:
        """The folder that messages are read from."""
        return f"filesystem://{self._in}"

    @property
    def identity(self) -> str:
        """The folder that messages are read from."""
        return self.place

    def open(self) -> None:
        """Create the folders."""
        for folder in (self._in, self._out, self._taken, self._processed):
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        for path in self._out.glob(f"*{_NEW}"):
            # Who wrote it died before it was a message, and has told nobody that it is one.
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()

    def close(self) -> None:
        """Nothing is open."""
        self._seen = None

    def put(self, messages: Sequence[Outgoing]) -> None:
        """Write a file for each message, one after the other."""
        for each in messages:
            if "/" in each.queue or "\0" in each.queue:
                raise TypeError(
                    f"A queue of kombu's filesystem transport is a file's name, not {each.queue!r}."
                )
        written = [
            (self._write(text), each.queue) for each, text in zip(messages, texts(messages), strict=True)
        ]
        _sync(self._out)
        for path, queue in written:
            path.rename(self._out / f"{self._stamp()}.{queue}.msg")
        _sync(self._out)

    def _write(self, text: str) -> Path:
        path = self._out / f"{self._own}{next(self._numbers)}{_NEW}"
        with path.open("wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        return path

    def _stamp(self) -> str:
        """kombu's beginning of a file's name, by which messages are ordered, and ours within one millisecond."""
        return f"{round(time.monotonic() * 1000)}_{next(self._numbers):012d}-{self._own}"

    def take(self, queues: Sequence[str], limit: int, wait: float) -> list[Taken]:
        """Rename what is whole into the folder of what is taken."""
        until = time.monotonic() + wait
        while True:
            self._sweep()
            if taken := self._take(queues, limit):
                return taken
            left = until - time.monotonic()
            if left <= 0 or self.pause(min(left, self.polling_interval)):
                return []

    def _take(self, queues: Sequence[str], limit: int) -> list[Taken]:
        if limit < 1 or not queues or self._unchanged(queues):
            return []
        changed = self._in.stat().st_mtime_ns
        listed = self._listed(queues)
        if not any(listed.values()) and time.time() - changed / 1e9 > _COARSE:
            self._seen = changed, frozenset(queues)
        self._turn += 1
        found = fair_share(
            queues, limit, self._turn, lambda queue, limit: self._whole_ones(queue, listed[queue], limit)
        )
        return [each for each in found if self._claim(each)]

    def _whole_ones(self, queue: str, names: Sequence[str], limit: int) -> list[Taken]:
        whole: list[Taken] = []
        for name in names:
            if len(whole) == limit:
                break
            if (text := _whole(self._in / name)) is not None:
                whole.append(Taken(queue, text, name))
        return whole

    def _claim(self, taken: Taken) -> bool:
        """Have it as our own. Whether nobody else was quicker."""
        name, taken.handle = taken.handle, f"{time.time():.3f}_{taken.handle}"
        try:
            (self._in / name).rename(self._taken / taken.handle)
        except FileNotFoundError:
            return False
        return True

    def _unchanged(self, queues: Sequence[str]) -> bool:
        """Whether nothing was added since a look at these queues found nothing."""
        return self._seen is not None and self._seen == (self._in.stat().st_mtime_ns, frozenset(queues))

    def _listed(self, queues: Sequence[str]) -> dict[str, list[str]]:
        """The files of each queue, the oldest first."""
        names: dict[str, list[str]] = {queue: [] for queue in queues}
        for name in os.listdir(self._in):  # noqa: PTH208 - a Path for each file takes ten times as long
            queue = name.partition(".")[2]
            if queue.endswith(".msg") and queue[:-4] in names:
                names[queue[:-4]].append(name)
        for found in names.values():
            found.sort(key=_age)
        return names

    def finish(self, taken: Sequence[Taken]) -> None:
        """Remove the files, or move them to where processed ones are stored."""
        for each in taken:
            with contextlib.suppress(FileNotFoundError):
                if self._processed is None:
                    (self._taken / each.handle).unlink()
                else:
                    shutil.move(self._taken / each.handle, self._processed / _original(each.handle))

    def give_back(self, taken: Sequence[Taken]) -> None:
        """Rename the files to what they were."""
        for each in taken:
            self._return(each.handle)

    def _return(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # its lease has ended
            (self._taken / name).rename(self._in / _original(name))

    def _sweep(self) -> None:
        """Give back what was taken a lease ago."""
        if time.monotonic() - self._swept < min(_SWEEP, self.lease / 2):
            return
        self._swept = time.monotonic()
        late = time.time() - self.lease
        for name in os.listdir(self._taken):  # noqa: PTH208
            if _taken_at(name) < late:
                self._return(name)

    def size(self, queue: str) -> int:
        """How many files of the queue there are."""
        return len(self._listed([queue])[queue])

    def purge(self, queue: str) -> int:
        """Delete the files of the queue."""
        gone = 0
        for name in self._listed([queue])[queue]:
            with contextlib.suppress(FileNotFoundError):
                (self._in / name).unlink()
                gone += 1
        return gone

    def explained(self, exc: BaseException) -> BrokerUnavailable:
        """The error of a folder that cannot be used."""
        if isinstance(exc, OSError) and exc.strerror:
            return BrokerUnavailable(
                f"The folder {exc.filename or self._in} of the broker cannot be used: {exc.strerror}; check the "
                "data_folder options and the rights."
            )
        return super().explained(exc)


def _age(name: str) -> tuple[int, str]:
    """By the milliseconds that a name begins with, as a number: one more digit would come first as text."""
    stamp, _, rest = name.partition("_")
    return (int(stamp) if stamp.isascii() and stamp.isdigit() else 0), rest


def _original(name: str) -> str:
    return name.partition("_")[2]


def _taken_at(name: str) -> float:
    try:
        return float(name.partition("_")[0])
    except ValueError:
        return 0.0


def _whole(path: Path) -> bytes | None:
    """What is in a message's file, or nothing while a stock client is still writing it."""
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            text = file.read()
            written = os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None
    # kombu opens the file first, locks it then, and writes the whole text at once.
    if not text.endswith(b"}") and time.time() - written < _WRITING:
        return None
    return text


def _sync(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
