"""A place to attack: the auditor's app in a folder, its servers, and its processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.acceptance.chaos.audit import Audit, Death
from tests.acceptance.processes import Launcher, Process, free_port, wait_until_up
from tests.services import RabbitMQServer, RedisServer
from tests.services.process import ServerProcess

from celeriac import Celery

__all__ = ["BROKERS", "Site", "open_site"]

#: What is attacked: in SQLite and Redis, queues and records are in one place; RabbitMQ's records are in Redis.
BROKERS = ("sqlite", "redis", "rabbitmq")

#: Seconds that RabbitMQ gets to start again, on a machine that is under attack.
_PATIENCE = 200.0

_SOURCES = Path(__file__).parent
_MODULES = ("auditor.py", "auditor_api.py", "publisher.py")


@dataclass
class Site:
    """The app, and what runs of it.

    ``broker_server`` and ``store_server`` are the servers' processes: the same one, or ``None`` for SQLite.
    """

    broker: str
    folder: Path
    launcher: Launcher
    env: Mapping[str, str]
    broker_server: ServerProcess | None = None
    store_server: ServerProcess | None = None
    conf: dict[str, Any] = field(default_factory=dict)
    deaths: list[Death] = field(default_factory=list)
    #: When an attack begins no new round, on the monotonic clock.
    until: float = float("inf")
    _names: int = 0

    def __post_init__(self) -> None:
        self.log = self.folder / "log"
        url = self.env.get("CELERY_BROKER_URL") or f"sqlite:///{self.folder / 'celery.db'}"
        #: A client that does not know the tasks, and need not.
        self.client = Celery(
            "client", broker=url, backend=self.env.get("CELERY_RESULT_BACKEND"), set_as_current=False
        )
        # A server that has just been started takes its time.
        self.client.conf.celeriac_publish_deadline = 30.0

    @property
    def expired(self) -> bool:
        """Whether the time of the attack is over."""
        return time.monotonic() > self.until

    def configure(self, **conf: Any) -> None:
        """Give settings to processes that are started from now on, and to the client, before it is opened."""
        self.conf.update(conf)
        self.client.conf.update(conf)

    def run(self, *arguments: str) -> Process:
        """Start a command in the folder."""
        return self.launcher.start(
            arguments, cwd=self.folder, env={**self.env, "AUDIT_CONF": json.dumps(self.conf)}
        )

    async def start_worker(self, *options: str) -> Process:
        """Start ``celery worker`` under a name of its own, and return when it is ready."""
        worker = self.run_worker(*options)
        await asyncio.to_thread(worker.wait_for_line, r" ready\.$", timeout=60)
        return worker

    def run_worker(self, *options: str) -> Process:
        """Start ``celery worker`` under a name of its own."""
        self._names += 1
        name = f"w{self._names}@%h"
        return self.run("celery", "-A", "auditor", "worker", "--loglevel=info", "-n", name, *options)

    async def start_publisher(self, seed: object, *, rate: float, longest: float) -> Process:
        """Start a process that enqueues, and return when it does."""
        process = self.run("python", "publisher.py", str(seed), str(rate), str(longest))
        await asyncio.to_thread(process.wait_for_line, "^publishing$", timeout=60)
        return process

    async def start_api(self) -> str:
        """Start the API, and return its URL when it answers."""
        url = f"http://127.0.0.1:{(port := free_port())}"
        api = self.run("uvicorn", "auditor_api:app", "--port", str(port))
        await asyncio.to_thread(wait_until_up, f"{url}/docs", api)
        return url

    def audit(self) -> Audit:
        """What was written down until now."""
        return Audit.of(self.log)

    async def wait_for_starts(self, number: int, timeout: float = 60.0) -> None:
        """Return when so many tasks have been started."""
        async with asyncio.timeout(timeout):
            while len((await asyncio.to_thread(self.audit)).starts) < number:
                await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def open_site(broker: str, folder: Path, servers: Servers | None = None) -> AsyncIterator[Site]:
    """A site over one of ``BROKERS`` with its servers; all processes are gone afterwards."""
    await asyncio.to_thread(_lay_out, folder)
    launcher = Launcher()
    with contextlib.ExitStack() as stack:
        made = servers or stack.enter_context(Servers())
        site = await asyncio.to_thread(made.site, broker, folder, launcher)
        try:
            yield site
        finally:
            await asyncio.to_thread(launcher.clean_up)
            await asyncio.to_thread(launcher.keep_outputs, folder / "output")


def _lay_out(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in _MODULES:
        shutil.copy(_SOURCES / name, folder)


class Servers(contextlib.ExitStack):
    """Servers that keep what they have over a kill, started when they are first needed."""

    def __init__(self) -> None:
        super().__init__()
        self._redis: RedisServer | None = None
        self._rabbitmq: RabbitMQServer | None = None

    def redis(self) -> RedisServer:
        """A Redis server with ``appendonly yes``, empty."""
        if self._redis is None:
            self._redis = self.enter_context(RedisServer(append_only=True))
        elif not self._redis.running:
            self._redis.start()
        self._redis.command("FLUSHALL")
        return self._redis

    def rabbitmq(self) -> RabbitMQServer:
        """A RabbitMQ server."""
        if self._rabbitmq is None:
            server = RabbitMQServer()
            server.patience = _PATIENCE
            self._rabbitmq = self.enter_context(server)
        elif not self._rabbitmq.running:
            self._rabbitmq.start()
        return self._rabbitmq

    def site(self, broker: str, folder: Path, launcher: Launcher) -> Site:
        """A site over a broker, with nothing in it."""
        if broker == "sqlite":
            return Site(broker, folder, launcher, {})
        redis = self.redis()
        if broker == "redis":
            return Site(broker, folder, launcher, {"CELERY_BROKER_URL": redis.url}, redis, redis)
        rabbitmq = self.rabbitmq()
        env = {"CELERY_BROKER_URL": rabbitmq.new_vhost(), "CELERY_RESULT_BACKEND": redis.url}
        return Site(broker, folder, launcher, env, rabbitmq, redis)
