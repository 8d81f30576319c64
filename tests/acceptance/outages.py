"""What can happen to a Redis server, and to the way there, while an app uses it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.services import Proxy, RedisServer

__all__ = ["OUTAGES", "Outage", "Site", "refuse", "swallow"]


@dataclass(frozen=True)
class Site:
    """A server that keeps its data, and the network in front of it."""

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


async def _kill(site: Site) -> None:
    await asyncio.to_thread(site.server.kill)


async def _start(site: Site) -> None:
    await asyncio.to_thread(site.server.start)


async def refuse(site: Site) -> None:
    """Nobody listens on the port any more, and what was connected is reset."""
    await site.proxy.refuse()


async def _heal(site: Site) -> None:
    await site.proxy.heal()


async def _pause(site: Site) -> None:
    site.server.pause()


async def _resume(site: Site) -> None:
    site.server.resume()


async def swallow(site: Site) -> None:
    """What is sent arrives nowhere; a connection that has lost something stays silent for good."""
    site.proxy.blackhole()


async def _limit(site: Site) -> None:
    await asyncio.to_thread(site.server.limit_memory)


async def _lift_limit(site: Site) -> None:
    await asyncio.to_thread(site.server.limit_memory, 0)


async def _follow(site: Site) -> None:
    await asyncio.to_thread(site.server.follow)


async def _lead(site: Site) -> None:
    await asyncio.to_thread(site.server.lead)


@dataclass(frozen=True)
class Outage:
    """One kind of trouble: how it begins and ends, and what is then to be expected."""

    name: str
    begin: Callable[[Site], Awaitable[None]]
    end: Callable[[Site], Awaitable[None]]
    #: What the error that ``enqueue`` raises has to say.
    says: str = field(kw_only=True)
    #: Whether what is there can be read meanwhile.
    reads: bool = field(default=False, kw_only=True)

    def __str__(self) -> str:
        return self.name


_SILENT = r"did not confirm within 2 seconds|does not answer: nothing came back"

OUTAGES = (
    Outage("refused", refuse, _heal, says="cannot be reached"),
    Outage("killed", _kill, _start, says="cannot be reached"),
    Outage("paused", _pause, _resume, says=_SILENT),
    Outage("swallowed", swallow, _heal, says=_SILENT),
    Outage("out of memory", _limit, _lift_limit, says="is out of memory", reads=True),
    Outage("read-only", _follow, _lead, says="is a read-only replica", reads=True),
)
