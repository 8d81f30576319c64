"""Real processes for acceptance tests: started in a group of their own, read without blocking, always cleaned up."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import httpx
import psutil

#: Variables of the machine that would change what a test sees.
_FOREIGN = (
    "CELERY_BROKER_URL",
    "CELERY_RESULT_BACKEND",
    "DEFAULT_RETRY_DELAY",
    "FAILURE_RATE",
    "HEARTBEAT_SECONDS",
    "MAX_RETRIES",
    "NO_COLOR",
    "PYTHONPATH",
    "SMTP_URL",
    "STEP_SECONDS",
)


def free_port() -> int:
    """A TCP port on the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def descendants(pid: int) -> list[psutil.Process]:
    """The process's children, their children, and so on, as far as they can still be traced to it."""
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


class Process:
    """A running process; its output, both streams, is collected line by line."""

    def __init__(self, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> None:
        self.arguments = list(arguments)
        self._lines: list[str] = []
        self._ended = False
        self._news = threading.Condition()
        self._popen = subprocess.Popen(
            self.arguments,
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Its process id, which is also that of its process group."""
        return self._popen.pid

    @property
    def output(self) -> str:
        """All that it has written so far."""
        with self._news:
            return "\n".join(self._lines)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    def mark(self) -> int:
        """A place in the output; ``wait_for_line(after=…)`` looks only at what comes behind it."""
        with self._news:
            return len(self._lines)

    def wait_for_line(self, pattern: str, *, timeout: float = 30.0, after: int = 0) -> re.Match[str]:
        """Wait for a line that the regular expression is found in. Fails with the whole output."""
        expression = re.compile(pattern)
        deadline = time.monotonic() + timeout
        seen = after
        with self._news:
            while True:
                for line in self._lines[seen:]:
                    if match := expression.search(line):
                        return match
                seen = max(seen, len(self._lines))
                # Under the lock all that was written has been looked at: after its end nothing more can come.
                if self._ended or not self._news.wait(deadline - time.monotonic()):
                    break
        raise AssertionError(f"{self} wrote no line like {pattern!r}. Its output:\n{self.output}")

    def signal(self, number: int) -> None:
        """Send a signal to the process alone."""
        self._popen.send_signal(number)

    def terminate(self) -> None:
        """SIGTERM to the process alone."""
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the process and all of its group: what a crash or the OOM killer leaves behind."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def wait(self, timeout: float = 30.0) -> int:
        """Wait for its end and all of its output. Returns the exit code; negative for a signal."""
        try:
            code = self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self} has not ended in {timeout} s. Its output:\n{self.output}") from None
        self._reader.join(timeout)
        return code

    def clean_up(self) -> None:
        """End it and all that it has started, whatever state they are in."""
        left = descendants(self.pid)
        self.kill()
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._popen.wait(10)
        self._reader.join(10)
        if self._popen.stdout is not None and not self._reader.is_alive():
            self._popen.stdout.close()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            with self._news:
                self._lines.append(line.decode(errors="replace").rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def __str__(self) -> str:
        return f"process {self.pid} ({' '.join(self.arguments)})"


class Launcher:
    """Starts processes, and cleans up after all of them."""

    def __init__(self) -> None:
        self._started: list[Process] = []

    def start(
        self, arguments: Iterable[str], *, cwd: Path, env: Mapping[str, str | None] | None = None
    ) -> Process:
        """Start ``arguments``; a first one that names a Python tool (``celery``, ``uvicorn``) is found in this venv.

        ``env`` is put over a copy of this process's environment; ``None`` removes a variable.
        """
        program, *rest = arguments
        merged: dict[str, str | None] = {
            **{key: value for key, value in os.environ.items() if key not in _FOREIGN},
            "PYTHONUNBUFFERED": "1",
            **(env or {}),
        }
        process = Process(
            [tool(program), *rest],
            cwd=cwd,
            env={key: value for key, value in merged.items() if value is not None},
        )
        self._started.append(process)
        return process

    def clean_up(self) -> None:
        """End everything that was started."""
        for process in self._started:
            process.clean_up()

    def keep_outputs(self, folder: Path) -> None:
        """Write what each has printed into a file of its own, named by its pid."""
        folder.mkdir(exist_ok=True)
        for process in self._started:
            (folder / f"{process.pid}.txt").write_text(process.output)


def tool(name: str) -> str:
    """The path of a program of this Python's environment, or ``name`` itself when it has none."""
    path = Path(sys.executable).parent / name
    return str(path) if path.exists() else name


def wait_until_up(url: str, process: Process, *, timeout: float = 30.0) -> None:
    """Wait until ``url`` answers anything but a connection error. Fails when the process ends before."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            httpx.get(url, timeout=5)
        except httpx.TransportError:
            pass
        else:
            return
        if not process.running or time.monotonic() > deadline:
            state = "has not answered" if process.running else "has ended"
            raise AssertionError(f"{url}: {process} {state}. Its output:\n{process.output}")
        time.sleep(0.05)
