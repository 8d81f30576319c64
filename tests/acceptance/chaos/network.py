"""The network between the processes under attack and their servers: it can cut, delay, and swallow what it carries."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import urlsplit

from tests.acceptance.chaos.site import Site
from tests.services import Proxy

__all__ = ["FAULTS", "networks"]

#: Which settings say where a server is, and what its network is called.
_ROLES = {"CELERY_BROKER_URL": "broker", "CELERY_RESULT_BACKEND": "records"}


@contextlib.asynccontextmanager
async def networks(site: Site) -> AsyncIterator[dict[str, Proxy]]:
    """Lead the processes that are started inside through a proxy to each server; the site's client needs none.

    Returns the proxies by what they lead to, ``broker`` and ``records``; there are none for SQLite.
    """
    direct, proxies = site.env, {}
    async with contextlib.AsyncExitStack() as stack:
        for setting, role in _ROLES.items():
            if url := direct.get(setting):
                proxies[role] = await stack.enter_async_context(Proxy(*_address(url)))
                site.env = {**site.env, setting: _through(proxies[role], url)}
        try:
            yield proxies
        finally:
            site.env = direct


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def _through(proxy: Proxy, url: str) -> str:
    host, port = _address(url)
    return url.replace(f"{host}:{port}", f"{proxy.host}:{proxy.port}")


async def _cut_one(proxy: Proxy, chance: random.Random, _seconds: float) -> None:
    proxy.cut_one(chance.random())


async def _cut_all(proxy: Proxy, _chance: random.Random, _seconds: float) -> None:
    proxy.cut()


async def _swallow(proxy: Proxy, _chance: random.Random, seconds: float) -> None:
    proxy.blackhole()
    await asyncio.sleep(seconds)
    await proxy.heal()


async def _swallow_replies(proxy: Proxy, _chance: random.Random, seconds: float) -> None:
    proxy.blackhole(requests=False)
    await asyncio.sleep(seconds)
    await proxy.heal()


async def _delay(proxy: Proxy, chance: random.Random, seconds: float) -> None:
    proxy.delay = chance.uniform(0.05, 0.5)
    await asyncio.sleep(seconds)
    await proxy.heal()


async def _refuse(proxy: Proxy, _chance: random.Random, seconds: float) -> None:
    await proxy.refuse()
    await asyncio.sleep(seconds)
    await proxy.heal()


#: What a network does; what lasts does so for some seconds.
FAULTS: dict[str, Callable[[Proxy, random.Random, float], Awaitable[None]]] = {
    "connection cut": _cut_one,
    "all connections cut": _cut_all,
    "black hole": _swallow,
    "half open": _swallow_replies,
    "slow": _delay,
    "refused": _refuse,
}
