"""Requests at an API from a process of its own: wrk, which takes the least of the processors that the API needs."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Failed

__all__ = ["Load", "put_load", "why_no_load"]

_SCRIPT = Path(__file__).with_name("load.lua")


@dataclass(frozen=True, slots=True)
class Load:
    """What the clients have seen. Times are seconds."""

    requests: int
    duration: float
    p50: float
    p99: float
    slowest: float

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.duration


def why_no_load() -> str | None:
    """Why no requests can be made here, or ``None``."""
    return None if shutil.which("wrk") else "wrk is not installed; `make services` installs it"


def put_load(url: str, *, clients: int, seconds: float) -> Load:
    """Requests by as many keep-alive ``clients``, each sending its next when it has its answer.

    Raises Failed unless every answer is of the 2xx.
    """
    arguments = ["wrk", "--threads", "1", "--connections", str(clients), "--duration", f"{seconds:.0f}s"]
    done = subprocess.run(
        [*arguments, "--timeout", "30s", "--script", str(_SCRIPT), url],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + 60,
    )
    if done.returncode != 0:
        raise Failed(f"wrk failed:\n{done.stdout}{done.stderr}")
    seen = json.loads(done.stdout.splitlines()[-1])
    if seen["refused"] or seen["broken"] or not seen["requests"]:
        raise Failed(f"Not every request was answered well:\n{done.stdout}")
    micro = 1e-6
    return Load(
        requests=seen["requests"],
        duration=seen["duration"] * micro,
        p50=seen["p50"] * micro,
        p99=seen["p99"] * micro,
        slowest=seen["max"] * micro,
    )
