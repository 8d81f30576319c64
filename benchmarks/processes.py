"""The processes that are measured, and what they have used of the machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

__all__ = ["Command", "Failed", "Process", "peak_memory", "run_probe", "running", "wait_until"]

_ROOT = Path(__file__).resolve().parent.parent

#: Seconds between two looks at something that other processes bring about.
_LOOK = 0.01

#: Seconds after which a process that was told to end is killed.
_PATIENCE = 20.0


#: Errors that a worker may have with itself.
_ERRORS = 10


class Failed(Exception):
    """A process has not done what it was started for."""

    @property
    def last_line(self) -> str:
        """The end of what it said, where the error is."""
        return str(self).strip().splitlines()[-1]


@dataclass(frozen=True, slots=True)
class Command:
    """What starts a process: a Python module with its arguments, in one of the environments that Python has here."""

    arguments: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    python: str = sys.executable


class Process:
    """A running process, with all that it has started."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path) -> None:
        self._popen = popen
        self._log = log
        self._ps = psutil.Process(popen.pid)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    def cpu_seconds(self) -> float:
        """Processor time so far, in user and system mode, its living children included."""
        total = 0.0
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def peak_memory(self) -> float:
        """Bytes that were resident at most; where the system does not tell, those that are now."""
        return sum(peak_memory(process) for process in self._tree())

    def _tree(self) -> list[psutil.Process]:
        try:
            return [self._ps, *self._ps.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def check(self) -> None:
        """Raise Failed if it has ended."""
        if self._popen.poll() is not None:
            raise Failed(f"The process ended with code {self._popen.returncode}. It said:\n{self.said}")

    def check_errors(self) -> None:
        """Raise Failed if it has reported so many errors that tasks must have failed, and not just its upkeep."""
        if self._log.read_text(errors="replace").count("Traceback") > _ERRORS:
            raise Failed(f"There were errors:\n{self.said}")

    @property
    def said(self) -> str:
        """The end of its output."""
        return self._log.read_text(errors="replace")[-4000:]

    def end(self, patience: float = _PATIENCE) -> None:
        """SIGTERM; SIGKILL when that has not helped after ``patience`` seconds, or at once when there is none."""
        left = self._tree()
        if patience and self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)
        try:
            self._popen.wait(patience)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def peak_memory(process: psutil.Process) -> float:
    """Bytes of one process that were resident at most; where the system does not tell, those that are now."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return float(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return float(process.memory_info().rss)


@contextlib.contextmanager
def running(command: Command, env: Mapping[str, str], patience: float = _PATIENCE) -> Iterator[Process]:
    """A process for a while: ``celery``, ``uvicorn``, … It gets ``patience`` seconds to end by itself."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with log.open("wb") as output:
            popen = subprocess.Popen(
                [command.python, "-m", *command.arguments],
                cwd=folder,
                env=_environment({**env, **command.env}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        process = Process(popen, log)
        try:
            yield process
        finally:
            process.end(patience)


def run_probe(
    name: str, arguments: Mapping[str, Any], env: Mapping[str, str], python: str = sys.executable
) -> Any:
    """Run a function of ``benchmarks.probes.<name>`` in a process of its own. Returns what it returned."""
    done = subprocess.run(
        [python, "-m", "benchmarks.probes", name, json.dumps(arguments)],
        env=_environment(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    if done.returncode != 0:
        raise Failed(f"The probe {name} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("CELERY_")}
    # A worker run by root warns at length; figures are no place for that.
    return {**kept, "PYTHONPATH": str(_ROOT), "C_FORCE_ROOT": "1", **env}


def wait_until(process: Process, condition: Callable[[], bool], *, timeout: float) -> float:
    """Wait until ``condition()`` holds, ``timeout`` seconds at most, and return the time. Raises Failed."""
    deadline = time.monotonic() + timeout
    while not condition():
        process.check()
        if time.monotonic() > deadline:
            raise Failed(f"Not done within {timeout:g} s. The process said:\n{process.said}")
        time.sleep(_LOOK)
    return time.time()
