"""Workers and clients of both kinds on one Redis server."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from tests.acceptance.processes import Launcher, Process
from tests.interop import redis_tasks
from tests.services import RedisServer

from celeriac import Celery

__all__ = ["Site", "StockClient", "redis_site", "running_site"]

_ROOT = Path(__file__).parents[2]

#: Seconds that a test waits for what must come.
PATIENCE = 20.0

#: The workers that tests share, by queue: app and options.
_SHARED = {
    "ours": ("ours", "-c", "20", "-E"),
    "ours-prefork": ("ours", "-P", "processes", "-c", "2", "-E"),
    "prefork": ("stock", "-P", "prefork", "-c", "2", "-E"),
    "threads": ("stock", "-P", "threads", "-c", "4", "-E"),
    "solo": ("stock", "-P", "solo", "-E"),
}


class StockClient:
    """A process with a plain Celery app, which evaluates expressions: ``client("add.delay(1, 2).get(timeout=9)")``."""

    def __init__(self, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.interop.redis_stock"],
            cwd=_ROOT,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __call__(self, expression: str, **variables: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump((expression, variables), self._process.stdin)
        self._process.stdin.flush()
        succeeded, answer = pickle.load(self._process.stdout)
        if not succeeded:
            raise answer
        return answer

    def result(self, task_id: str) -> Any:
        """What ``AsyncResult.get`` gives, or raises."""
        return self("AsyncResult(task_id).get(timeout=patience)", task_id=task_id, patience=PATIENCE)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


class Site:
    """A Redis server, and the processes that share it. Settings are those of every app, stock ones too."""

    def __init__(self, server: RedisServer, launcher: Launcher, **settings: Any) -> None:
        self.server = server
        self.settings = {"broker_url": server.url, **settings}
        self.redis = redis.Redis.from_url(server.url, decode_responses=True)
        self._side_url = server.url_for(db=1)  # by the default user
        self._side = redis.Redis.from_url(self._side_url, decode_responses=True)
        self._launcher = launcher
        self._clients: list[StockClient] = []
        self._workers: dict[str, Process] = {}

    def env(self, app: str, **settings: Any) -> dict[str, str]:
        """The environment of a process with one of the apps."""
        values = {**self.settings, **settings}
        if app == "stock":
            values = {
                "broker_connection_retry_on_startup": True,
                "result_backend": values["broker_url"],
                "worker_prefetch_multiplier": 1,
                **values,
            }
        return {
            redis_tasks.SETTINGS: json.dumps(values),
            redis_tasks.SIDE_URL: self._side_url,
            "PYTHONPATH": str(_ROOT),
            "C_FORCE_ROOT": "1",  # a worker that accepts pickle would not start
        }

    def run(self, app: str, *arguments: str, **settings: Any) -> Process:
        """Start ``celery -A <app> arguments``; the app is ``ours`` or ``stock``."""
        module = f"tests.interop.redis_{app}"
        return self._launcher.start(
            [sys.executable, "-m", "celery", "-A", module, *arguments],
            cwd=_ROOT,
            env=self.env(app, **settings),
        )

    def start_worker(self, app: str, queue: str, *options: str, **settings: Any) -> Process:
        """Start a worker of this queue, whose node name is ``<queue>@site`` unless the options give one."""
        named = options if "-n" in options else ("-n", f"{queue}@site", *options)
        if app == "stock" or "-P" in options:
            named = ("--without-mingle", "--without-gossip", *named)
        settings.setdefault("task_default_queue", queue)
        return self.run(app, "worker", "--loglevel=info", "-Q", queue, *named, **settings)

    def worker(self, app: str, queue: str, *options: str, **settings: Any) -> Process:
        """Start a worker, and wait until it consumes."""
        worker = self.start_worker(app, queue, *options, **settings)
        worker.wait_for_line(r" ready\.")
        return worker

    def shared(self, *queues: str) -> None:
        """Have these workers, all of which start at once; tests share them, and must not stop them."""
        new = [queue for queue in queues if queue not in self._workers]
        for queue in new:
            app, *options = _SHARED[queue]
            self._workers[queue] = self.start_worker(app, queue, *options)
        for queue in new:
            self._workers[queue].wait_for_line(r" ready\.")

    def output_of(self, queue: str) -> str:
        """What a shared worker has written."""
        return self._workers[queue].output

    def stock_client(self, **settings: Any) -> StockClient:
        """A stock client; its tasks go to the queue ``ours`` unless it says otherwise."""
        env = {**os.environ, **self.env("stock", **{"task_default_queue": "ours", **settings})}
        client = StockClient(env)
        self._clients.append(client)
        return client

    def our_client(self, **settings: Any) -> Celery:
        """An app of ours in this process, not open yet. To be called outside the loop: it imports modules."""
        os.environ[redis_tasks.SIDE_URL] = self._side_url
        from tests.interop.redis_ours import make_app

        app = make_app({**self.settings, **settings})
        app.finalize(auto=True)
        return app

    def notes(self, name: str, count: int = 0) -> list[str]:
        """What tasks have written under a name, once there are so many lines of it."""
        deadline = time.monotonic() + PATIENCE
        while len(lines := self._side.lrange(f"notes:{name}", 0, -1)) < count:
            assert time.monotonic() < deadline, f"only {lines} were noted under {name!r}"
            time.sleep(0.01)
        return list(lines)

    def open_gate(self, name: str, times: int = 1) -> None:
        """Let as many tasks go on that wait under a name."""
        self._side.rpush(f"gate:{name}", *["open"] * times)

    def close(self) -> None:
        """End the clients; the processes belong to the launcher."""
        for client in self._clients:
            client.close()
        self.redis.close()
        self._side.close()


def unique(prefix: str = "name") -> str:
    """A name that no other test uses."""
    return f"{prefix}-{uuid4().hex[:8]}"


@contextlib.contextmanager
def running_site(server: RedisServer, **settings: Any) -> Iterator[Site]:
    """What shares a server that runs. All that is started on it ends afterwards."""
    launcher = Launcher()
    site = Site(server, launcher, **settings)
    try:
        yield site
    finally:
        launcher.clean_up()
        site.close()


# For each module anew: kombu's own event loop, on which stock prefork workers run, after a while waits in a read of its
# pub/sub connection until the next broadcast, and every call of such a worker takes seconds.
@pytest.fixture(scope="module")
def redis_site() -> Iterator[Site]:
    """A server with workers that all tests share."""
    with RedisServer() as server, running_site(server) as site:
        yield site
