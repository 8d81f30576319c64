"""The quickstart as a user runs it: a copy of its folder, its real processes, and its HTTP API."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
from tests.acceptance.processes import Launcher, Process, free_port, wait_until_up

SOURCE = Path(__file__).parents[2] / "examples" / "quickstart"

READY = ("SUCCESS", "FAILURE", "REVOKED")


class Quickstart:
    """A copy of the quickstart in ``folder``. ``env`` is for all of its processes; nothing fails on purpose."""

    def __init__(self, folder: Path, launcher: Launcher, env: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.launcher = launcher
        self.env: dict[str, str] = {"FAILURE_RATE": "0", **(env or {})}
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=30)
        shutil.copytree(
            SOURCE,
            folder,
            ignore=shutil.ignore_patterns("__pycache__", "outbox", "*.db*", "celerybeat-schedule*"),
        )

    @property
    def outbox(self) -> Path:
        """Where messages are written without SMTP."""
        return self.folder / "outbox"

    def run(self, *arguments: str, env: Mapping[str, str | None] | None = None) -> Process:
        """Start a command in the folder: ``run("celery", "-A", "worker.celery_app", "inspect", "ping")``."""
        return self.launcher.start(arguments, cwd=self.folder, env={**self.env, **(env or {})})

    def celery(self, *arguments: str, env: Mapping[str, str | None] | None = None) -> Process:
        """Start ``celery -A worker.celery_app …``."""
        return self.run("celery", "-A", "worker.celery_app", *arguments, env=env)

    def start_api(self, *, env: Mapping[str, str | None] | None = None) -> Process:
        """Start the API, and wait until it answers."""
        api = self.run("uvicorn", "main:app", "--port", str(self.port), env=env)
        wait_until_up(f"{self.url}/docs", api)
        return api

    def start_worker(self, *options: str, env: Mapping[str, str | None] | None = None) -> Process:
        """Start a worker, and wait until it says that it is ready."""
        worker = self.celery("worker", "--loglevel=info", *(options or ("-c", "4")), env=env)
        worker.wait_for_line(r" ready\.$")
        return worker

    def start_beat(self, *, env: Mapping[str, str | None] | None = None) -> Process:
        """Start the schedule."""
        beat = self.celery("beat", "--loglevel=info", env=env)
        beat.wait_for_line("beat: Starting")
        return beat

    def post(self, path: str, body: Any = None) -> str:
        """POST, expect 202, and return the task's id."""
        answer = self.http.post(path, json=body)
        assert answer.status_code == 202, answer.text
        task_id: str = answer.json()["task_id"]
        return task_id

    def process_data(self, payload: str, user_id: int = 1) -> str:
        """Enqueue ``process_data`` over HTTP. Returns the task's id."""
        return self.post("/process-data", {"user_id": user_id, "payload": payload})

    def status(self, task_id: str) -> dict[str, Any]:
        """What ``GET /task-status/…`` says."""
        answer = self.http.get(f"/task-status/{task_id}")
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    def record(self, task_id: str) -> dict[str, Any]:
        """What ``GET /tasks/…`` says: the whole record."""
        answer = self.http.get(f"/tasks/{task_id}")
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    def wait_for_status(self, task_id: str, *statuses: str, timeout: float = 30.0) -> dict[str, Any]:
        """Wait until the task's status is one of ``statuses``; of the ready ones without any."""
        wanted = statuses or READY
        return wait_for(
            lambda: self.status(task_id), lambda status: status["status"] in wanted, timeout=timeout
        )


def wait_for(
    look: Callable[[], dict[str, Any]], enough: Callable[[dict[str, Any]], bool], *, timeout: float = 30.0
) -> dict[str, Any]:
    """Look until it is enough, and return what was seen. Fails with what was seen last."""
    deadline = time.monotonic() + timeout
    while not enough(seen := look()):
        assert time.monotonic() < deadline, f"Not there after {timeout} s. Seen last: {seen}"
        time.sleep(0.05)
    return seen
