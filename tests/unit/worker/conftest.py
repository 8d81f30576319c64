"""Remote control over each broker that this machine has."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery.worker import state as worker_state
from tests.unit.worker.control_site import Site, make_app

from celeriac.worker import control


@pytest.fixture(params=["memory", "sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "memory":
        yield "memory://"
        return
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/broker.db"
        return
    server_url = request.getfixturevalue("redis_url")
    yield server_url
    with redis.Redis.from_url(server_url) as client:
        client.flushall()


@pytest.fixture
async def sites(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(control, "LOCAL_POLL", 0.01)
    monkeypatch.setattr(control, "DRAIN", 0.05)
    started: list[Site] = []

    async def start(url: str, **options: Any) -> Site:
        site = Site(make_app("worker", url), make_app("client", url), **options)
        started.append(site)
        await site.start()
        return site

    yield start
    for site in started:
        await asyncio.to_thread(site.control.stop, 5)
        assert not site.control.alive
        site.client.close()
    worker_state.reset_state()


@pytest.fixture
async def site(sites: Any) -> Site:
    return await sites("memory://")


@pytest.fixture
async def any_site(url: str, sites: Any) -> Site:
    """The same over each broker: for what travels, and not only answers."""
    return await sites(url)
