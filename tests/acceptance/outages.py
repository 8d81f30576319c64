"""What can happen to a server, and to the way there, while an app uses it; and who recovers from it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from tests.acceptance.ledger import Ledger, until
from tests.acceptance.observing import Api, Clock, enqueue_again
from tests.acceptance.processes import Process
from tests.services import Proxy, RedisServer
from tests.services.process import ServerProcess

from celeriac.handle import TaskHandle

__all__ = [
    "OUTAGES",
    "RECOVERY",
    "SLOW_OUTAGES",
    "AnySite",
    "Outage",
    "RedisOutage",
    "Site",
    "Witnesses",
    "heal",
    "kill",
    "pause",
    "refuse",
    "resume",
    "start",
    "swallow",
    "swallow_replies",
]

#: Seconds within which all is well again once the server is.
RECOVERY = 5.0


class AnySite(Protocol):
    """A server, and the network in front of it."""

    @property
    def server(self) -> ServerProcess:
        """What is used."""

    @property
    def proxy(self) -> Proxy:
        """The way there."""


S = TypeVar("S", bound=AnySite)


@dataclass(frozen=True)
class Outage(Generic[S]):
    """One kind of trouble: how it begins and ends, and what is then to be expected."""

    name: str
    begin: Callable[[S], Awaitable[None]]
    end: Callable[[S], Awaitable[None]]
    #: What the error that ``enqueue`` raises has to say.
    says: str = field(kw_only=True)
    #: Seconds that it lasts at least.
    lasts: float = field(default=0.0, kw_only=True)

    def __str__(self) -> str:
        return self.name


async def kill(site: AnySite) -> None:
    """The server dies."""
    await asyncio.to_thread(site.server.kill)


async def start(site: AnySite) -> None:
    """The server is there again."""
    await asyncio.to_thread(site.server.start)


async def refuse(site: AnySite) -> None:
    """Nobody listens on the port any more, and what was connected is reset."""
    await site.proxy.refuse()


async def swallow(site: AnySite) -> None:
    """What is sent arrives nowhere; a connection that has lost something stays silent for good."""
    site.proxy.blackhole()


async def swallow_replies(site: AnySite) -> None:
    """What is sent arrives, and nothing comes back."""
    site.proxy.blackhole(requests=False)


async def heal(site: AnySite) -> None:
    """The network is well again."""
    await site.proxy.heal()


async def pause(site: AnySite) -> None:
    """The server stands still."""
    await asyncio.to_thread(site.server.pause)


async def resume(site: AnySite) -> None:
    """The server goes on."""
    site.server.resume()


@dataclass
class Witnesses:
    """A worker and an API, a task that runs, and all that waits for it: a client, and the API's streams."""

    ledger: Ledger
    worker: Process
    process: Process
    api: Api
    running: TaskHandle[Any]
    following: asyncio.Task[list[str]]
    waiting: asyncio.Task[Any]
    clock: Clock = field(default_factory=Clock)

    @classmethod
    @asynccontextmanager
    async def of(cls, ledger: Ledger, *options: str) -> AsyncIterator[Witnesses]:
        """Those of a ledger, whose worker has these options; the task is said to run."""
        worker, (process, url) = await asyncio.gather(
            asyncio.to_thread(ledger.start_worker, *options), asyncio.to_thread(ledger.start_api)
        )
        client, api = ledger.client, Api(url)
        async with client, api.http:
            running = await client.enqueue("ledger.work_until", (str(ledger.folder / "door"),))
            started = asyncio.Event()
            following = asyncio.create_task(api.follow(running.id, started))
            waiting = asyncio.create_task(running.result())
            await started.wait()
            yield cls(ledger, worker, process, api, running, following, waiting)

    def open_door(self) -> None:
        """Let the task that runs come to its end."""
        (self.ledger.folder / "door").touch()

    async def recover(self, rest: Sequence[TaskHandle[Any]] = (), *, within: float = 20) -> None:
        """From now, the end of the outage, until everybody has what they wait for, and so have new ones."""
        clock = self.clock = Clock()
        async with asyncio.timeout(within):
            handle = await clock.time("enqueue", enqueue_again(self.ledger.client))
            await asyncio.gather(
                clock.time("POST", self.api.enqueue_again()),
                clock.time("consume", until(lambda: self.ledger.lines("end")[handle.id] >= 1, 60)),
                clock.time("result", self.waiting),
                clock.time("stream", self.following),
                clock.time("new result", handle.result()),
                clock.time("rest", asyncio.gather(*(each.result() for each in rest))),
            )

    def assert_recovered(self) -> None:
        """In time, with nothing lost on the way, and without a word too many."""
        assert max(self.clock.seconds.values()) < RECOVERY, self.clock.seconds
        assert self.following.result()[-1] == "end"
        assert "Traceback" not in self.worker.output
        assert "Traceback" not in self.process.output


@dataclass(frozen=True)
class Site:
    """A Redis server that keeps its data, and the network in front of it."""

    server: RedisServer
    proxy: Proxy

    @property
    def url(self) -> str:
        """Through the network."""
        return f"redis://{self.proxy.host}:{self.proxy.port}/0"

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[Site]:
        """A server and a network that are well."""
        with RedisServer(append_only=True) as server:
            async with Proxy(server.host, server.port) as proxy:
                yield cls(server, proxy)


async def _limit(site: Site) -> None:
    await asyncio.to_thread(site.server.limit_memory)


async def _lift_limit(site: Site) -> None:
    await asyncio.to_thread(site.server.limit_memory, 0)


async def _follow(site: Site) -> None:
    await asyncio.to_thread(site.server.follow)


async def _lead(site: Site) -> None:
    await asyncio.to_thread(site.server.lead)


@dataclass(frozen=True)
class RedisOutage(Outage[Site]):
    """What can happen to Redis."""

    #: Whether what is there can be read meanwhile.
    reads: bool = field(default=False, kw_only=True)


_SILENT = r"did not confirm within 2 seconds|does not answer: nothing came back"

OUTAGES = (
    RedisOutage("refused", refuse, heal, says="cannot be reached"),
    RedisOutage("killed", kill, start, says="cannot be reached"),
    RedisOutage("paused", pause, resume, says=_SILENT),
    RedisOutage("swallowed", swallow, heal, says=_SILENT),
    RedisOutage("out of memory", _limit, _lift_limit, says="is out of memory", reads=True),
    RedisOutage("read-only", _follow, _lead, says="is a read-only replica", reads=True),
)

#: For who wants to know: much the same to a client as those above, or long.
SLOW_OUTAGES = (
    RedisOutage("half open", swallow_replies, heal, says=_SILENT),
    RedisOutage("silent for a minute", pause, resume, says=_SILENT, lasts=60),
)
