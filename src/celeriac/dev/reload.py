"""Which source files have changed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from pathlib import Path

from watchfiles import PythonFilter, awatch

__all__ = ["Changes", "describe", "watch"]


class _Sources(PythonFilter):
    ignore_dirs = (*PythonFilter.ignore_dirs, "venv", "env", "build", "dist")


class Changes:
    """The source files that have changed since somebody asked last."""

    def __init__(self) -> None:
        self._paths: set[str] = set()
        self._arrived = asyncio.Event()

    def add(self, paths: Collection[str]) -> None:
        """Note changed files."""
        self._paths.update(paths)
        self._arrived.set()

    async def next(self) -> Collection[str]:
        """Wait until files have changed, and take their paths. May be cancelled; nothing is lost."""
        await self._arrived.wait()
        self._arrived.clear()
        paths, self._paths = self._paths, set()
        return paths


@contextlib.asynccontextmanager
async def watch(folder: Path, *, enabled: bool = True) -> AsyncIterator[Changes]:
    """The changes of ``*.py`` files under ``folder`` from now on; none ever when not ``enabled``."""
    changes = Changes()
    if not enabled:
        yield changes
        return
    watching = asyncio.create_task(_collect(folder, changes))
    try:
        yield changes
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching


async def _collect(folder: Path, changes: Changes) -> None:
    async for batch in awatch(folder, watch_filter=_Sources(), raise_interrupt=False):
        changes.add([path for _, path in batch])


def describe(paths: Collection[str], folder: Path) -> str:
    """Changed files in a few words: the first of them, seen from ``folder``, and how many more."""
    names = sorted(str(Path(path).relative_to(folder)) for path in paths)
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
