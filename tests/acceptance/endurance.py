"""What a worker and an API gather over very many tasks: ``python -m tests.acceptance.endurance redis --tasks 1000000``.

Among the tasks are failures, retries, cancels, results waited for and streams of events; and now and then the server
closes all connections. Prints, for each tenth, memory and connections of both processes; the exit code is 1 if they
grow, or if tasks have not been started.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from tests.acceptance.processes import Launcher, Process, free_port, wait_until_up
from tests.services import RabbitMQServer, RedisServer

__all__ = ["BROKERS", "Endurance", "Sample"]

SOURCES = Path(__file__).parent / "apps"

#: Tasks in one request.
CHUNK = 1_000

#: Of a hundred tasks, how often each kind is started, cancelled ones aside.
STARTS = {"succeed": 82, "succeed_in_thread": 5, "fail": 5, "retry_once": 10}

#: Seconds for the last retries, and for a lease to end.
PATIENCE = 30.0

#: Megabytes that a process may grow by, from the first sample after a fifth of the way to the end.
GROWTH = 16.0

#: Connections and other open files that a process may have more at the end than at that sample.
LEEWAY = 3

_CONF = {"result_expires": 30.0, "celeriac_lease": 10.0, "worker_hijack_root_logger": False}


@dataclass(frozen=True)
class Place:
    """Where tasks go: the settings that say so, and what cuts all connections where there are any."""

    env: dict[str, str]
    cut: Callable[[], object] | None


@contextmanager
def _sqlite() -> Iterator[Place]:
    yield Place({}, None)


@contextmanager
def _redis() -> Iterator[Place]:
    with RedisServer(append_only=True) as server:
        yield Place(
            {"CELERY_BROKER_URL": server.url},
            lambda: [server.disconnect(kind) for kind in ("normal", "pubsub")],
        )


@contextmanager
def _rabbitmq() -> Iterator[Place]:
    with RabbitMQServer() as server:
        yield Place(
            {"CELERY_BROKER_URL": server.url}, lambda: server.command("close_all_connections", "as told")
        )


BROKERS = {"sqlite": _sqlite, "redis": _redis, "rabbitmq": _rabbitmq}


@dataclass(frozen=True)
class Sample:
    """A process at one moment: memory in megabytes, its TCP connections, open files of every kind, threads."""

    memory: float
    connections: int
    files: int
    threads: int

    @classmethod
    def of(cls, process: Process) -> Sample:
        inside = psutil.Process(process.pid)
        return cls(
            round(inside.memory_info().rss / 1e6, 1),
            len([each for each in inside.net_connections("tcp") if each.status == "ESTABLISHED"]),
            inside.num_fds(),
            inside.num_threads(),
        )

    def __str__(self) -> str:
        return f"{self.memory:6.1f} MB, {self.connections} connections, {self.files} files, {self.threads} threads"


class Endurance:
    """A worker and an API in a folder, and how they do.

    Args:
        folder: Where they run.
        launcher: Starts them.
        env: For both.
    """

    def __init__(self, folder: Path, launcher: Launcher, env: dict[str, str]) -> None:
        folder.mkdir(exist_ok=True)
        for name in ("endurance.py", "endurance_api.py"):
            shutil.copy(SOURCES / name, folder)
        env = {**env, "ENDURANCE_CONF": json.dumps(_CONF)}
        self.worker = launcher.start(
            ("celery", "-A", "endurance", "worker", "-c", "200", "--loglevel=critical"), cwd=folder, env=env
        )
        port = free_port()
        self.api = launcher.start(
            ("uvicorn", "endurance_api:app", "--port", str(port), "--log-level", "warning"),
            cwd=folder,
            env=env,
        )
        url = f"http://127.0.0.1:{port}"
        wait_until_up(f"{url}/docs", self.api)
        self.http = httpx.Client(base_url=url, timeout=120)
        self.samples: list[tuple[Sample, Sample]] = []
        self.sent = 0
        self.cuts = 0

    def run(
        self, tasks: int, steps: int, cut: Callable[[], object] | None, note: Callable[[str], None]
    ) -> None:
        """Have so many tasks run, and take a sample after each of so many steps. Cuts connections twice a step."""
        began = time.monotonic()
        chunks = max(1, tasks // CHUNK // steps)
        for _ in range(steps):
            for chunk in range(chunks):
                if cut is not None and chunk in (chunks // 3, 2 * chunks // 3):
                    cut()
                    self.cuts += 1
                self._send()
            self._wait_for_the_rest()
            self.samples.append((Sample.of(self.worker), Sample.of(self.api)))
            worker, api = self.samples[-1]
            rate = self.sent / (time.monotonic() - began)
            note(f"{self.sent:9,} tasks, {rate:5.0f}/s   worker: {worker}   API: {api}")
        self._wait_for_the_last()

    def _send(self) -> None:
        while True:
            answer = self.http.post("/mixture", params={"number": CHUNK})
            if answer.status_code in (503, 504):  # it was cut off, and may not know what has become of them
                continue
            answer.raise_for_status()
            break
        self.sent += CHUNK
        self._follow(answer.json()["followed"])
        while self._asked("/waiting") > 5 * CHUNK:
            time.sleep(0.1)

    def _follow(self, task_id: str) -> None:
        """Read a stream of events to its end."""
        with self.http.stream("GET", f"/tasks/{task_id}/events") as answer:
            text = "".join(answer.iter_text())
        assert "event: end" in text, text
        assert text.count("event: value") == 5, text

    def _wait_for_the_rest(self) -> None:
        while self._asked("/waiting"):
            time.sleep(0.1)

    def _wait_for_the_last(self) -> None:
        """What waits for its time is not counted with what waits, nor is what was cut off on its way to the worker."""
        until = time.monotonic() + PATIENCE
        self.counts: dict[str, int] = self._asked("/counts")
        while self._missing() and time.monotonic() < until:
            time.sleep(0.2)
            self.counts = self._asked("/counts")

    def _missing(self) -> list[str]:
        """What has not been started as often as it was enqueued; what was cut off has been enqueued more often."""
        owed = {kind: self.sent * share // 100 for kind, share in STARTS.items()}
        return [
            f"{kind} was started {self.counts.get(kind, 0):,} times, and not {number:,} times or more."
            for kind, number in owed.items()
            if self.counts.get(kind, 0) < number
        ]

    def _asked(self, path: str) -> Any:
        while (answer := self.http.get(path)).status_code in (503, 504):
            time.sleep(0.1)
        return answer.raise_for_status().json()

    def trouble(self) -> list[str]:
        """What was lost, and what has grown since the first sample after a fifth of the way; nothing if all is well."""
        found = self._missing()
        (worker, api), (last_worker, last_api) = self.samples[len(self.samples) // 5], self.samples[-1]
        for name, first, last in (("worker", worker, last_worker), ("API", api, last_api)):
            if last.memory - first.memory > GROWTH:
                found.append(f"The {name} grew from {first.memory} to {last.memory} MB.")
            if last.connections > first.connections + LEEWAY or last.files > first.files + LEEWAY:
                found.append(f"The {name} had {first} and then {last}.")
        return found


def main() -> int:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("broker", choices=BROKERS)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=10)
    wanted = parser.parse_args()
    launcher = Launcher()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.callback(launcher.clean_up)
        place = stack.enter_context(BROKERS[wanted.broker]())
        endurance = Endurance(folder, launcher, place.env)
        endurance.run(wanted.tasks, wanted.steps, place.cut, _say)
        found = endurance.trouble()
        _say(f"{endurance.cuts} times all connections were cut; started: {endurance.counts}")
        for sentence in found:
            _say(sentence)
    return 1 if found else 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
