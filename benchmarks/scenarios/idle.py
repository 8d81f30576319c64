"""What a worker and an API cost while there is nothing to do."""

from __future__ import annotations

import socket
import time
import urllib.request
from collections.abc import Iterator

from benchmarks.figures import Figure, at_most
from benchmarks.processes import Command, Process, run_probe, running, wait_until
from benchmarks.report import Row
from benchmarks.scale import Scale
from benchmarks.systems import EMBEDDED, Place, WorkerOptions

__all__ = ["answers", "measure"]

_NAME = "idle"

#: Seconds in which a process that has just been used comes to rest.
_SETTLE = 1.0

_START = 30.0


def measure(scale: Scale) -> Iterator[Row]:
    """Processor time of each, in percent of one processor, in a system that has run a few tasks."""
    runs = []
    for _ in range(scale.runs):
        with EMBEDDED.place() as place:
            runs.append(_run(place, scale.idle))
    for column, who in enumerate(("worker", "API")):
        percent = [run[column] for run in runs]
        yield Figure(_NAME, EMBEDDED.name, f"idle {who}", "% of a CPU", percent, at_most(2.0))


def _run(place: Place, seconds: float) -> list[float]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    api = Command(("uvicorn", "benchmarks.apps.web:app", "--port", str(port), "--log-level", "warning"))
    with (
        running(EMBEDDED.worker(WorkerOptions()), place.env) as worker,
        running(api, place.env) as web,
    ):
        wait_until(web, lambda: answers(port), timeout=_START)
        run_probe("latency", {"samples": 2, "pause": 0.01}, place.env)
        time.sleep(_SETTLE)
        return _percent([worker, web], seconds)


def _percent(processes: list[Process], seconds: float) -> list[float]:
    before = [process.cpu_seconds() for process in processes]
    started = time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - started
    return [
        (process.cpu_seconds() - used) / elapsed * 100
        for process, used in zip(processes, before, strict=True)
    ]


def answers(port: int) -> bool:
    """Whether the API on this port is up."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False
