"""A primary, its replica, and a sentinel that swaps them within seconds when the primary is gone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import redis
from tests.services.process import PATIENCE, Server, ServerProcess, ping
from tests.services.redis import RedisServer, redis_program

__all__ = ["RedisSentinel"]


class _Sentinel(ServerProcess):
    def __init__(self) -> None:
        self._program = redis_program()
        super().__init__()

    def configure(self, name: str, primary: RedisServer) -> None:
        lines = [
            f"port {self.port}",
            f"bind {self.host}",
            f"dir {self.folder}",
            f"unixsocket {self.folder / 'redis.sock'}",
            f"sentinel monitor {name} {primary.host} {primary.port} 1",
            f"sentinel down-after-milliseconds {name} 500",
            f"sentinel failover-timeout {name} 3000",
        ]
        (self.folder / "sentinel.conf").write_text("\n".join(lines) + "\n")

    def _command(self) -> list[str]:
        return [self._program, str(self.folder / "sentinel.conf"), "--sentinel"]

    def _answer(self) -> bytes:
        return ping(self.folder / "redis.sock")


class RedisSentinel(Server):
    """Two servers and one sentinel, whose word alone counts (quorum 1).

    The sentinel calls the primary down when it was silent for 0.5 s.
    """

    #: The name under which the sentinel knows the primary: Celery's transport option ``master_name``.
    name = "tasks"

    def __init__(self) -> None:
        self.servers = (RedisServer(append_only=True), RedisServer(append_only=True))
        self.sentinel = _Sentinel()

    @property
    def url(self) -> str:
        """The URL in Celery's form; the transport option ``master_name`` belongs to it."""
        return f"sentinel://{self.sentinel.host}:{self.sentinel.port}/0"

    def admin(self) -> redis.Redis:
        """A client of the sentinel itself; the caller closes it."""
        return redis.Redis(self.sentinel.host, self.sentinel.port, decode_responses=True, protocol=2)

    def command(self, *words: str | int) -> Any:
        """The sentinel's reply to one command, such as ``SENTINEL MASTERS``."""
        with self.admin() as client:
            return client.execute_command(*words)

    @property
    def primary(self) -> RedisServer:
        """Who is the primary at present, in the sentinel's opinion."""
        port = int(self.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)[1])
        return next(server for server in self.servers if server.port == port)

    @property
    def replica(self) -> RedisServer:
        """The other one."""
        return self.servers[1 - self.servers.index(self.primary)]

    def fail_over(self) -> RedisServer:
        """Have primary and replica swapped, with both of them well. Gives the new primary."""
        former = self.primary
        self.command("SENTINEL", "FAILOVER", self.name)
        return self.wait_for_other_primary(former)

    def wait_for_other_primary(self, former: RedisServer) -> RedisServer:
        """Wait until the sentinel names another primary, and finds it well. Gives it."""
        _wait_until(lambda: self.primary is not former and self._is_content(), "no failover", self.sentinel)
        return self.primary

    def wait_for_replica(self, former: RedisServer) -> None:
        """Wait until a former primary, which runs, has become a replica: until then it can be written to, in vain."""
        _wait_until(lambda: former.command("ROLE")[0] == "slave", "still a primary", self.sentinel)

    def start(self) -> None:
        """Start all three, and return when a failover is possible."""
        primary, replica = self.servers
        primary.start()
        replica.start()
        replica.follow(primary)
        _wait_until(lambda: _is_fed(replica), "no replication", replica)
        self.sentinel.configure(self.name, primary)
        self.sentinel.start()
        with contextlib.suppress(redis.ResponseError):  # before Redis 7
            # Otherwise a former primary goes on as one for 10 seconds.
            self.command("SENTINEL", "DEBUG", "INFO-PERIOD", 100, "PUBLISH-PERIOD", 100)
        _wait_until(self._knows_the_replica, "the sentinel does not see the replica", self.sentinel)

    def close(self) -> None:
        """Kill all three, and remove what they wrote."""
        for process in (self.sentinel, *self.servers):
            process.close()

    def _is_content(self) -> bool:
        """Whether the sentinel sees a primary that is up; just after a swap it does not."""
        facts = _pairs(self.command("SENTINEL", "MASTER", self.name))
        return facts["flags"] == "master"

    def _knows_the_replica(self) -> bool:
        for facts in self.command("SENTINEL", "REPLICAS", self.name):
            replica = _pairs(facts)
            if replica["flags"] == "slave" and replica["master-link-status"] == "ok":
                return True
        return False


def _is_fed(replica: RedisServer) -> bool:
    with replica.admin() as client:
        return bool(client.info("replication").get("master_link_status") == "up")


def _pairs(facts: list[str]) -> dict[str, str]:
    return dict(zip(facts[::2], facts[1::2], strict=True))


def _wait_until(condition: Callable[[], bool], otherwise: str, server: ServerProcess) -> None:
    # Another process has nothing that could be awaited.
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{otherwise}. It said:\n{server.log}")
        time.sleep(0.01)
