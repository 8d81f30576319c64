"""One child process in a process group of its own, so that it can be ended with everything that it has started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["COLD_GRACE", "COLD_SHUTDOWN", "Child", "Command"]

_CHUNK = 65_536

#: Celery's signal for a cold shutdown, in which a worker hands its running tasks back; killed, it would leave them
#: to whoever finds that their lease has ended.
COLD_SHUTDOWN = signal.SIGQUIT

#: Seconds that it may take.
COLD_GRACE = 2.0


@dataclass(frozen=True, slots=True)
class Command:
    """A Python module to run under a name: ``Command("api", "uvicorn", ("main:app",))``."""

    name: str
    module: str
    arguments: tuple[str, ...]


class Child:
    """A running command. Get one by :meth:`start`."""

    def __init__(self, process: asyncio.subprocess.Process, on_line: Callable[[str], None]) -> None:
        self._process = process
        self._on_line = on_line
        self._output = asyncio.create_task(self._read_lines())

    @classmethod
    async def start(
        cls, command: Command, environment: Mapping[str, str], on_line: Callable[[str], None]
    ) -> Child:
        """Start ``command``; ``on_line`` gets each line that it writes, without its end."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-u",
            *("-m", "celeriac.dev.child", command.module),
            *command.arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        return cls(process, on_line)

    async def wait(self) -> int:
        """Wait for its end and its last line, and end what it has left behind. Returns the exit code, as Popen does."""
        code = await self._process.wait()
        self.kill()
        # Shielded: whoever waits may be cancelled, the reading goes on.
        await asyncio.shield(self._output)
        return code

    async def stop(self, grace: float) -> None:
        """Ask it to end, within ``grace`` seconds; then to end at once; then kill it. Cancelled, kill it."""
        try:
            for number, seconds in ((signal.SIGTERM, grace), (COLD_SHUTDOWN, COLD_GRACE)):
                self._signal(number)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await self.wait()
                        return
        finally:
            self.kill()
            await self.wait()

    def mute(self) -> None:
        """Read on, so that it does not stand still, but pass nothing on."""
        self._on_line = lambda _line: None

    def kill(self) -> None:
        """SIGKILL to the whole group. Harmless when nothing is left of it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def _read_lines(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        rest = b""
        while chunk := await stream.read(_CHUNK):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._on_line(line.decode(errors="replace").rstrip("\r"))
        if rest:
            self._on_line(rest.decode(errors="replace"))
