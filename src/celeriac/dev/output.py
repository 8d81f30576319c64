"""One terminal for several processes: every line says where it comes from."""

from __future__ import annotations

from typing import TextIO

__all__ = ["SUPERVISOR", "Console"]

#: The name that the supervisor's own lines carry.
SUPERVISOR = "celeriac"

_WIDTH = len(SUPERVISOR)
_RESET = "\x1b[0m"
_BOLD_RED = "\x1b[1;31m"
_COLORS = {"api": "\x1b[36m", "worker": "\x1b[32m", "beat": "\x1b[35m", SUPERVISOR: "\x1b[1;33m"}


class Console:
    """Writes whole lines, each behind a prefix. Once nobody reads any more, it is silent and ``broken`` is set."""

    def __init__(self, stream: TextIO, *, color: bool) -> None:
        self._stream = stream
        self.color = color
        self.broken = False

    def line(self, source: str, text: str) -> None:
        """One line of output of ``source``."""
        prefix = f"{source:<{_WIDTH}} |"
        if self.color and source in _COLORS:
            prefix = f"{_COLORS[source]}{prefix}{_RESET}"
        self._write(f"{prefix} {text}\n")

    def say(self, text: str) -> None:
        """What the supervisor itself has to say."""
        self.line(SUPERVISOR, text)

    def error(self, text: str) -> None:
        """What went wrong, a line or a whole traceback, without a prefix so that it can be read and copied."""
        text = text.rstrip("\n")
        self._write(f"{_BOLD_RED}{text}{_RESET}\n" if self.color else f"{text}\n")

    def _write(self, text: str) -> None:
        if self.broken:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            # The terminal or the pipe is gone. The supervisor must live on to end its children.
            self.broken = True
