"""Workers of both kinds in processes of their own, and a stock client that controls and watches them."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery.events import EventReceiver
from tests.acceptance.processes import Launcher, Process
from tests.interop import remote_app
from tests.services import RedisServer

__all__ = ["RemoteSite", "remote_site", "wait_for"]

_ROOT = Path(__file__).parents[2]

#: Seconds that a test waits for what must come.
PATIENCE = 20.0


def wait_for(condition: Callable[[], Any], timeout: float = PATIENCE) -> Any:
    """What a condition returns, once that is true."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)
    return value


class Events(list[dict[str, Any]]):
    """What a receiver like Flower's has captured so far."""

    def of(self, task_id: str) -> list[dict[str, Any]]:
        """The events of one task, in their order."""
        return [event for event in list(self) if event.get("uuid") == task_id]

    def of_worker(self, hostname: str, kind: str) -> list[dict[str, Any]]:
        """A worker's own events of this type."""
        return [event for event in list(self) if event["hostname"] == hostname and event["type"] == kind]


class RemoteSite:
    """A broker, a folder, and what is started on them."""

    def __init__(self, url: str, folder: Path, launcher: Launcher) -> None:
        self.url, self.folder, self.launcher = url, folder, launcher
        self.client = remote_app.make_app("stock", url, folder, {})

    def env(self, kind: str, **settings: Any) -> dict[str, str]:
        """The environment of a process with an app of this kind."""
        return {
            remote_app.KIND: kind,
            remote_app.URL: self.url,
            remote_app.FOLDER: str(self.folder),
            remote_app.SETTINGS: json.dumps(settings),
            "PYTHONPATH": str(_ROOT),
            "C_FORCE_ROOT": "1",
        }

    def run(self, kind: str, *arguments: str, **settings: Any) -> Process:
        """Start ``celery -A … arguments``."""
        return self.launcher.start(
            [sys.executable, "-m", "celery", "-A", "tests.interop.remote_app", *arguments],
            cwd=self.folder,
            env=self.env(kind, **settings),
        )

    def worker(self, kind: str, name: str, *options: str, **settings: Any) -> Process:
        """Start a worker, of the queue and with the node name that go with ``name``, and wait until it consumes."""
        if "-Q" not in options:
            options = ("-Q", name, *options)
        if "-n" not in options:
            options = ("-n", f"{name}@site", *options)
        worker = self.run(
            kind, "worker", "--loglevel=info", *options, **{"task_default_queue": name, **settings}
        )
        worker.wait_for_line(r" ready\.")
        return worker

    def send(self, queue: str, task: str, *args: Any, **options: Any) -> Any:
        """Publish as any Celery client does."""
        return self.client.send_task(task, args, queue=queue, **options)

    def inspect(self, node: str, command: str, *args: Any, **kwargs: Any) -> Any:
        """The answer of one node."""
        answers = wait_for(
            lambda: getattr(
                self.client.control.inspect([f"{node}@site"], timeout=10, limit=1),
                command,
            )(*args, **kwargs)
        )
        return answers[f"{node}@site"]

    def control(self, node: str, command: str, **arguments: Any) -> Any:
        """Send a command to one node, and give its answer."""
        (answer,) = self.client.control.broadcast(
            command, arguments, [f"{node}@site"], reply=True, timeout=10, limit=1
        )
        return answer[f"{node}@site"]

    def notes(self, start: str, count: int = 0) -> list[str]:
        """The notes that begin so, once there are so many."""
        path = self.folder / "notes"

        def read() -> list[str]:
            lines = path.read_text().splitlines() if path.exists() else []
            return [line for line in lines if line.startswith(start)]

        if count:
            wait_for(lambda: len(read()) >= count)
        return read()

    def open_gate(self, name: str) -> None:
        """Let the tasks go on that wait for a file of this name."""
        (self.folder / name).touch()

    @contextmanager
    def events(self) -> Iterator[Events]:
        """Capture events while the context lasts."""
        events, ready = Events(), threading.Event()

        class Receiver(EventReceiver):  # type: ignore[misc]
            def on_consume_ready(self, *_args: Any, **_kwargs: Any) -> None:
                ready.set()

        receivers = []

        def capture() -> None:
            with self.client.connection_for_read() as connection:
                receivers.append(Receiver(connection, app=self.client, handlers={"*": events.append}))
                for _ in receivers[0].itercapture(timeout=None, wakeup=False):
                    pass

        thread = threading.Thread(target=capture, daemon=True)
        thread.start()
        assert ready.wait(10)
        try:
            yield events
        finally:
            receivers[0].should_stop = True
            thread.join(10)


@contextmanager
def _running_broker(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    kind = request.param
    if kind == "sqlite":
        yield f"sqlite:///{folder}/celery.db"
    elif kind == "redis":
        with RedisServer() as server:
            yield server.url
    else:
        server = request.getfixturevalue("rabbitmq")
        url = server.new_vhost()
        yield url
        server.delete_vhost(url)


@pytest.fixture(scope="module", params=["sqlite", "redis", "rabbitmq"])
def remote_site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RemoteSite]:
    """A broker for the tests of a module, and the processes that they start."""
    folder = tmp_path_factory.mktemp("remote")
    launcher = Launcher()
    with _running_broker(request, folder) as url:
        try:
            site = RemoteSite(url, folder, launcher)
            yield site
            site.client.close()
        finally:
            launcher.clean_up()
