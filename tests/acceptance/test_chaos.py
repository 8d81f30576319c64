"""The short version of the attacks on what is promised: a few faults of each kind. ``make chaos`` is the long one."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.acceptance.chaos.cancels import cancel_anything
from tests.acceptance.chaos.figures import Figures
from tests.acceptance.chaos.kills import kill_anything
from tests.acceptance.chaos.leases import outlive_a_worker
from tests.acceptance.chaos.poison import poison_workers
from tests.acceptance.chaos.rolling import restart_workers
from tests.acceptance.chaos.site import BROKERS, Servers, Site, open_site

Attack = Callable[[Site, random.Random], Awaitable[Figures]]

#: A RabbitMQ server that starts takes as long as all the rest.
_LONG = ("server restart", "server SIGKILL")


async def _kill_a_few(site: Site, chance: random.Random) -> Figures:
    spared = _LONG if site.broker == "rabbitmq" else ()
    return await kill_anything(site, chance, rounds=5, lease=3.0, rate=15.0, crew_of=(2, 1), spared=spared)


async def _cancel_a_few(site: Site, chance: random.Random) -> Figures:
    return await cancel_anything(site, chance, rounds=1, lease=3.0, restarts=site.broker != "rabbitmq")


ATTACKS: dict[str, Attack] = {
    "any process dies": _kill_a_few,
    "a lease ends": partial(outlive_a_worker, rounds=1, lease=2.0),
    "poison": partial(poison_workers, rounds=1, lease=0.5, limit=1, ways=("http",)),
    "rolling restarts": partial(restart_workers, rounds=2, rate=15.0),
    "cancel": _cancel_a_few,
}


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    """Servers for all of these tests, killed and started again in some of them."""
    with Servers() as servers:
        yield servers


@pytest.mark.parametrize("broker", BROKERS)
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
async def test_what_is_promised_is_kept(
    broker: str, attack: Attack, servers: Servers, tmp_path: Path
) -> None:
    async with open_site(broker, tmp_path / "site", servers) as site:
        figures = await attack(site, random.Random(broker))
    assert figures.kept, "\n".join([str(figures), *figures.complaints()])
    assert figures.faults
    assert figures.enqueued
