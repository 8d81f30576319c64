"""A file system of a few megabytes, that a test can fill."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.services import missing

__all__ = ["Disk"]


class Disk:
    """A mounted file system, and the file that takes up what is left of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    @classmethod
    @contextmanager
    def mounted(cls, folder: Path, megabytes: int = 8) -> Iterator[Disk]:
        """An empty one. The test needs the right to mount; without it, it ends here."""
        folder.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs"]
        mounting = subprocess.run(["mount", *options, folder], capture_output=True, text=True, check=False)
        if mounting.returncode:
            missing(f"No file system can be mounted here: {mounting.stderr.strip()}")
        try:
            yield cls(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)

    def fill(self) -> None:
        """Leave no byte."""
        file = os.open(self._ballast, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            size = 1 << 20
            while size:
                try:
                    os.write(file, bytes(size))
                except OSError:
                    size //= 2
        finally:
            os.close(file)

    def free(self) -> None:
        """Give back what was filled."""
        self._ballast.unlink()
