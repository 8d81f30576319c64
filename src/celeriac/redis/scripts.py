"""Lua scripts that live in files beside the modules that run them."""

from __future__ import annotations

import hashlib
import pkgutil
from dataclasses import dataclass
from functools import cache

__all__ = ["Script"]


@dataclass(frozen=True, slots=True)
class Script:
    """A script: its text, and the SHA-1 by which the server knows it once it has run."""

    name: str
    text: str
    sha: str

    @classmethod
    def load(cls, package: str, *files: str) -> Script:
        """The script of these files of a package, one after the other: functions first, the script itself last."""
        return _load(package, files)


@cache
def _load(package: str, files: tuple[str, ...]) -> Script:
    # As modules are read, which happens once and may happen inside an event loop.
    parts = [pkgutil.get_data(package, file) or b"" for file in files]
    text = b"\n".join(parts).decode("utf-8")
    return Script(files[-1], text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
