"""One server for each module and store: uvicorn with a worker inside, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from tests.acceptance.processes import Launcher, Process, free_port, wait_until_up
from tests.services import running_redis

ROOT = Path(__file__).parents[2]

_JSON = {"Content-Type": "application/json"}


class Shop:
    """The server, and a client of it."""

    def __init__(self, url: str, process: Process) -> None:
        self.process = process
        self.http = httpx.Client(base_url=url, timeout=30)

    def enqueue(self, name: str, *args: Any, **options: Any) -> str:
        """Enqueue a task of ``tests.http.shop``. Returns its id."""
        body = json.dumps(args)  # in ASCII, which can say half a surrogate pair
        answer = self.http.post(f"/enqueue/{name}", content=body, params=options, headers=_JSON)
        assert answer.status_code == 200, answer.text
        return str(answer.json())

    def waiting(self) -> str:
        """A task that waits in a queue that nobody reads."""
        return self.enqueue("add", 1, 2, queue="nobody's")

    def running(self) -> tuple[str, str]:
        """A task that has begun, and the door that it waits for."""
        door = uuid4().hex
        task_id = self.enqueue("wait", door)
        self.until(task_id, "STARTED")
        return task_id, door

    def open(self, door: str) -> None:
        """Let a running task go on."""
        assert self.http.post(f"/open/{door}").status_code == 200

    def succeeded(self) -> str:
        return self.ended(self.enqueue("add", 1, 2), "SUCCESS")

    def failed(self, message: str = "bad row") -> str:
        return self.ended(self.enqueue("fail", message), "FAILURE")

    def revoked(self) -> str:
        task_id = self.waiting()
        assert self.http.post(f"/tasks/{task_id}/cancel").status_code == 202
        return self.ended(task_id, "REVOKED")

    def expired(self) -> str:
        return str(self.http.post("/expire").json())

    def ended(self, task_id: str, state: str) -> str:
        """Wait for the task's end."""
        self.http.get(f"/tasks/{task_id}/result", params={"wait": 20})
        assert self.record(task_id)["state"] == state
        return task_id

    def until(self, task_id: str, state: str) -> str:
        """Wait until the task is in the state."""
        with self.http.stream("GET", f"/tasks/{task_id}/events") as answer:
            for line in answer.iter_lines():
                if f'"state":"{state}"' in line.replace(" ", ""):
                    return task_id
        raise AssertionError(f"{task_id} has ended, and was never {state}: {self.record(task_id)}")

    def record(self, task_id: str) -> dict[str, Any]:
        answer = self.http.get(f"/tasks/{task_id}")
        assert answer.status_code == 200, answer.text
        record: dict[str, Any] = answer.json()
        return record


@contextlib.contextmanager
def serving(folder: Path, broker_url: str, app: str = "tests.http.shop:app") -> Iterator[Shop]:
    """The server while the context lasts. Fails when it has said that something went wrong inside."""
    launcher, port = Launcher(), free_port()
    env = {
        "CELERY_BROKER_URL": broker_url,
        "PYTHONPATH": str(ROOT),
        "FAILURE_RATE": "0",
    }
    try:
        arguments = ["uvicorn", app, "--port", str(port), "--log-level", "warning"]
        process = launcher.start(arguments, cwd=folder, env=env)
        url = f"http://127.0.0.1:{port}"
        wait_until_up(f"{url}/openapi.json", process)
        shop = Shop(url, process)
        with shop.http:
            yield shop
        assert "Exception in ASGI application" not in process.output, process.output
    finally:
        launcher.clean_up()


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """The server of ``tests.http.shop`` on each store."""
    folder = tmp_path_factory.mktemp("shop")
    with contextlib.ExitStack() as stack:
        url = f"sqlite:///{folder / 'celery.db'}"
        if request.param == "redis":
            url = stack.enter_context(running_redis())
        yield stack.enter_context(serving(folder, url))


def wait_for(look: Any, timeout: float = 20.0) -> Any:
    """Look until there is something, and return it."""
    deadline = time.monotonic() + timeout
    while not (seen := look()):
        assert time.monotonic() < deadline, "It has not happened."
        time.sleep(0.02)
    return seen
