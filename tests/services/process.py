"""A server of this machine as a process that a test starts, stops, kills, pauses and starts again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests.services.ports import HOST, ReservedPort

__all__ = ["PATIENCE", "Server", "ServerProcess", "ping"]

#: Seconds that a server gets to answer, or to end.
PATIENCE = 10.0


class Server(ABC):
    """What ``with`` starts, and at the end kills, also when it did not start well."""

    @abstractmethod
    def start(self) -> None:
        """Start it, and return when it answers."""

    @abstractmethod
    def close(self) -> None:
        """Kill it, and remove what it wrote."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ServerProcess(Server):
    """One server with a port and a folder of its own, which both outlive its process."""

    host = HOST

    #: Seconds that it gets to answer, or to end.
    patience = PATIENCE

    def __init__(self) -> None:
        self._reserved = ReservedPort()
        self.port = self._reserved.number
        # Not pytest's folder: the path of a Unix socket must not be longer than 100 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="celeriac-"))
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _command(self) -> list[str]:
        """The command line that starts it."""

    def _spawn_environment(self) -> dict[str, str] | None:
        """The environment of its process, where it needs one of its own."""
        return None

    @abstractmethod
    def _answer(self) -> bytes:
        """Its answer to a question of ours; raises :class:`OSError` while there is no connection."""

    @property
    def running(self) -> bool:
        """Whether there is a process, paused or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def group(self) -> int | None:
        """The process group of the server and what it has started, while it runs."""
        return self._process.pid if self._process is not None else None

    @property
    def log(self) -> str:
        """All that it wrote since it was first started."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self, *options: str, until: bytes = b"+PONG") -> None:
        """Start it, and return when it gives this answer. ``options`` are added to the command line this once."""
        if self.running:
            raise RuntimeError(f"{self} runs already.")
        with (self.folder / "log").open("ab") as output:
            self._process = subprocess.Popen(
                [*self._command(), *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self._spawn_environment(),
                # One group: a server that is a script and what it has started.
                process_group=0,
            )
        try:
            self.wait_for_answer(until)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End it as an administrator does (SIGTERM), and return when it has ended."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)
        self._wait_for_end()

    def kill(self) -> None:
        """End it without a warning (SIGKILL): the kernel closes its connections."""
        self._signal(signal.SIGKILL)
        self._wait_for_end()

    def restart(self) -> None:
        """:meth:`stop` and :meth:`start`, on the same port."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Make it silent (SIGSTOP): the kernel keeps and accepts connections, but nothing is answered.

        Returns when all its threads stand still, as some may go on for a moment. Linux alone tells.
        """
        self._signal(signal.SIGSTOP)
        deadline = time.monotonic() + self.patience
        while any(state not in "TZX" for state in self._thread_states()) and time.monotonic() < deadline:
            os.sched_yield()

    def resume(self) -> None:
        """Let a paused one go on (SIGCONT); it then answers what it was sent meanwhile."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill it, and remove what it wrote."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._reserved.release()

    def wait_for_answer(self, answer: bytes) -> None:
        """Wait until it gives this answer; raise with its own words when it does not."""
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline and self.running:
            with contextlib.suppress(OSError):
                if self._answer().startswith(answer):
                    return
            time.sleep(0.002)
        raise RuntimeError(f"{self} does not answer. It said:\n{self.log}")

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _thread_states(self) -> Iterator[str]:
        """The state of each thread of the group, as Linux shows it: T is stopped, Z and X have ended."""
        for stat in Path("/proc").glob("[0-9]*/task/[0-9]*/stat") if self.running else ():
            with contextlib.suppress(OSError):
                state, _parent, group = stat.read_text().rpartition(") ")[2].split()[:3]
                if int(group) == self.group:
                    yield state

    def _wait_for_end(self) -> None:
        if self._process is not None:
            self._process.wait(self.patience)
            self._process = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {self.host}:{self.port}>"


def ping(path: Path, *login: str) -> bytes:
    """What a Redis server on a Unix socket says to a ``PING`` of this user."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        client.connect(str(path))
        words = [["AUTH", *login], ["PING"]] if login else [["PING"]]
        client.sendall("".join(" ".join(line) + "\r\n" for line in words).encode())
        reply = b""
        while reply.count(b"\r\n") < len(words):
            if not (received := client.recv(1024)):
                raise ConnectionResetError
            reply += received
        return reply.split(b"\r\n")[len(words) - 1]
