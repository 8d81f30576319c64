"""Places where canvas runs: a store, a worker of either kind, and a form of its tasks."""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery.exceptions import TimeoutError as CeleryTimeoutError
from tests.acceptance.processes import Launcher, Process
from tests.interop import canvas_tasks
from tests.services import RedisServer

from celeriac import Celery

__all__ = ["PATIENCE", "Place", "canvas_places", "place"]

_ROOT = Path(__file__).parents[2]

#: Seconds that a test waits for what must come.
PATIENCE = 10.0

#: Store, kind of worker, form of the tasks.
PLACES = [
    (store, kind, form)
    for store in ("redis", "sqlite")
    for kind in ("stock", "ours")
    for form in canvas_tasks.FORMS[kind]
]

_OPTIONS = {
    "stock": ("-P", "threads", "-c", "4", "--without-mingle", "--without-gossip"),
    "ours": ("-c", "20"),
}


class Place:
    """One worker with a queue of its own, and a client; tasks are its attributes: ``place.add.s(1, 2)``."""

    def __init__(self, client: Celery, folder: Path, kind: str, form: str) -> None:
        self.client = client
        self.kind = kind
        self._folder = folder
        self._form = form

    def __getattr__(self, name: str) -> Any:
        return self.client.tasks[f"{self._form}.{name}"]

    def get(self, canvas: Any, **options: Any) -> Any:
        """Publish a canvas, and wait for what comes of it."""
        return canvas.apply_async(**options).get(timeout=PATIENCE)

    def get_all(self, canvases: Mapping[str, Callable[[Place], Any]]) -> dict[str, Any]:
        """Publish them all, and wait for what comes of each; for one that does not end, that it has not."""
        results = {name: make(self).apply_async() for name, make in canvases.items()}
        return {name: self._value(result) for name, result in results.items()}

    @staticmethod
    def _value(result: Any) -> Any:
        try:
            return result.get(timeout=PATIENCE, propagate=False)
        except CeleryTimeoutError as exc:
            return exc

    def ended(self, result: Any, state: str = "SUCCESS") -> bool:
        """Whether a task ends in this state, without raising what it raised."""
        result.get(timeout=PATIENCE, propagate=False)
        return bool(result.state == state)

    def notes(self, name: str, count: int = 0) -> list[str]:
        """What tasks have written under a name, once there are so many lines of it."""
        path = self._folder / name
        deadline = time.monotonic() + PATIENCE
        while True:
            lines = path.read_text().splitlines() if path.exists() else []
            if len(lines) >= count:
                return lines
            assert time.monotonic() < deadline, f"only {lines} were noted under {name!r}"
            time.sleep(0.01)


class _Site:
    """The workers of all places, which start when they are first needed, those of one store at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._launcher = Launcher()
        self._servers: list[RedisServer] = []
        self._stores: dict[str, dict[str, Celery]] = {}

    def place(self, store: str, kind: str, form: str) -> Place:
        clients = self._stores.get(store) or self._open(store)
        return Place(clients[kind], self._folder, kind, form)

    def _open(self, store: str) -> dict[str, Celery]:
        url = self._url(store)
        workers, clients = [], {}
        for kind, options in _OPTIONS.items():
            settings = {"broker_url": url, "result_backend": url, "task_default_queue": kind}
            workers.append(self._start(kind, settings, *options))
            client = Celery("client", set_as_current=False)
            client.conf.update(settings)
            for form in canvas_tasks.FORMS["ours"]:
                canvas_tasks.define(client, form)
            client.finalize(auto=True)
            clients[kind] = client
        for worker in workers:
            worker.wait_for_line(r" ready\.")
        self._stores[store] = clients
        return clients

    def _url(self, store: str) -> str:
        if store == "sqlite":
            return f"sqlite:///{self._folder / 'canvas.db'}"
        server = RedisServer()
        server.__enter__()
        self._servers.append(server)
        return server.url

    def _start(self, kind: str, settings: dict[str, Any], *options: str) -> Process:
        # What an app of ours has as defaults.
        own = {"worker_prefetch_multiplier": 1, "result_extended": True} if kind == "stock" else {}
        return self._launcher.start(
            [
                sys.executable,
                "-m",
                "celery",
                "-A",
                "tests.interop.canvas_tasks",
                "worker",
                "--loglevel=info",
                "-n",
                f"{kind}@canvas",
                *options,
            ],
            cwd=_ROOT,
            env={
                canvas_tasks.KIND: kind,
                canvas_tasks.SETTINGS: json.dumps({**settings, **own}),
                canvas_tasks.FOLDER: str(self._folder),
                "PYTHONPATH": str(_ROOT),
            },
        )

    def close(self) -> None:
        self._launcher.clean_up()
        # A result that is forgotten unsubscribes, for which it needs the server.
        gc.collect()
        for clients in self._stores.values():
            for client in clients.values():
                client.close()
        for server in self._servers:
            server.close()


@pytest.fixture(scope="session")
def canvas_places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Site]:
    """The workers that all tests of canvas share."""
    site = _Site(tmp_path_factory.mktemp("canvas"))
    try:
        yield site
    finally:
        site.close()


@pytest.fixture(params=PLACES, ids="-".join, scope="session")
def place(request: pytest.FixtureRequest, canvas_places: _Site) -> Place:
    """Each store with each worker, and with ours each form of the tasks."""
    return canvas_places.place(*request.param)


def unique() -> str:
    """A name that no other test uses."""
    return uuid4().hex
