"""Where messages and results are: prefixes, priorities, databases, and what a user of Redis may do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.processes import Process
from tests.interop.redis_site import Site, StockClient, running_site, unique
from tests.services import RedisServer

from celeriac import Celery

pytestmark = pytest.mark.timeout(90)

_DOCS = Path(__file__).parents[2] / "docs" / "redis.md"


@pytest.fixture(scope="module")
def site(redis_site: Site) -> Site:
    return redis_site


@pytest.fixture(scope="module")
def start(site: Site) -> Iterator[Callable[..., Process]]:
    """Starts workers that end with the module."""
    started: list[Process] = []

    def start(*arguments: str, **settings: Any) -> Process:
        started.append(site.worker(*arguments, **settings))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()
        worker.wait()


# -- prefixes ----------------------------------------------------------------------------------------------------

#: The same for both kinds; a result backend's prefix gets an underscore.
PREFIXED: dict[str, Any] = {
    "broker_transport_options": {"global_keyprefix": "shop:"},
    "result_backend_transport_options": {"global_keyprefix": "shop"},
}


@pytest.fixture(scope="module")
def prefixed_client(site: Site, start: Callable[..., Process]) -> StockClient:
    start("ours", "prefixed", **PREFIXED)
    start("stock", "prefixed-stock", "-P", "solo", **PREFIXED)
    return site.stock_client(**PREFIXED)


@pytest.fixture(scope="module")
def prefixed_app(site: Site) -> Celery:
    return site.our_client(**PREFIXED)


@pytest.mark.parametrize("queue", ["prefixed", "prefixed-stock"])
def test_a_stock_client_shares_a_prefix(prefixed_client: StockClient, queue: str) -> None:
    expression = "add.apply_async((1, 2), queue=queue, countdown=countdown, priority=priority).get(timeout=9)"

    assert prefixed_client(expression, queue=queue, countdown=None, priority=None) == 3
    assert prefixed_client(expression, queue=queue, countdown=0.2, priority=9) == 3


@pytest.mark.parametrize("queue", ["prefixed", "prefixed-stock"])
async def test_a_client_of_ours_shares_a_prefix(
    prefixed_client: StockClient, prefixed_app: Celery, site: Site, queue: str
) -> None:
    async with prefixed_app:
        handle = await prefixed_app.enqueue("add", (1, 2), queue=queue, countdown=0.2, priority=9)
        assert await handle.result(9) == 3
        assert len([event async for event in handle.events()]) >= 2

    assert site.redis.exists(f"shop_celery-task-meta-{handle.id}") == 1
    assert site.redis.exists(f"celery-task-meta-{handle.id}") == 0


@pytest.mark.parametrize("queues", [("prefixed", "prefixed-stock"), ("prefixed-stock", "prefixed")])
def test_chords_share_a_prefix(prefixed_client: StockClient, queues: tuple[str, str]) -> None:
    expression = (
        "chord([add.s(n, 1).set(queue=a) for n in range(5)], total.s().set(queue=b))().get(timeout=9)"
    )

    assert prefixed_client(expression, a=queues[0], b=queues[1]) == 15


@pytest.mark.parametrize("queue", ["prefixed", "prefixed-stock"])
def test_remote_control_shares_a_prefix(prefixed_client: StockClient, queue: str) -> None:
    ping = "app.control.inspect([node], timeout=9, limit=1).ping()"

    assert prefixed_client(ping, node=f"{queue}@site") == {f"{queue}@site": {"ok": "pong"}}


def test_everything_is_behind_the_prefix(prefixed_client: StockClient, tmp_path: Path) -> None:
    with RedisServer() as server, running_site(server, **PREFIXED) as site:
        site.worker("ours", "ours")
        client = site.stock_client()
        assert client("chord([add.s(1, 1)] * 2, total.s())().get(timeout=9)") == 4
        keys = site.redis.keys("*")

    assert [key for key in keys if not key.startswith(("shop:", "shop_"))] == []
    assert [key for key in keys if key.startswith("shop:")] != []


# -- priorities --------------------------------------------------------------------------------------------------


def published(client: StockClient, site: Site, queue: str, name: str) -> None:
    """One task that waits, so that the others gather behind it, and then one of each priority."""
    client("wait.apply_async((name,), queue=queue)", name=name, queue=queue)
    site.notes(name, 1)
    for priority in (3, 9, 0, 6):
        client(
            "note.apply_async((name, priority), queue=queue, priority=priority)",
            name=name,
            queue=queue,
            priority=priority,
        )
    site.open_gate(name)


@pytest.mark.parametrize(
    ("app", "options", "order"),
    [
        ("ours", {}, ["9", "6", "3", "0"]),
        ("ours", {"priority_order": "lowest_first"}, ["0", "3", "6", "9"]),
        ("stock", {}, ["0", "3", "6", "9"]),
    ],
)
def test_the_order_of_priorities(
    site: Site, start: Callable[..., Process], app: str, options: dict[str, Any], order: list[str]
) -> None:
    """Higher goes first, as with RabbitMQ; stock workers on Redis read the lowest first."""
    queue, name = unique("queue"), unique()
    arguments = ("-P", "solo") if app == "stock" else ("-c", "1")
    start(app, queue, *arguments, broker_transport_options=options)
    published(site.stock_client(), site, queue, name)

    assert site.notes(name, 6)[2:] == order


def test_steps_of_ones_own_are_shared(site: Site, start: Callable[..., Process]) -> None:
    settings: dict[str, Any] = {
        "broker_transport_options": {"priority_steps": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], "sep": ":"}
    }
    queue, name = unique("queue"), unique()
    start("ours", queue, "-c", "1", **settings)
    client = site.stock_client(**settings)
    client("wait.apply_async((name,), queue=queue)", name=name, queue=queue)
    site.notes(name, 1)
    for priority in (4, 5, 8, 7):
        client("note.apply_async((name, p), queue=queue, priority=p)", name=name, queue=queue, p=priority)
    assert site.redis.llen(f"{queue}:8") == 1
    site.open_gate(name)

    assert site.notes(name, 6)[2:] == ["8", "7", "5", "4"]


# -- rights ------------------------------------------------------------------------------------------------------


#: The prefix that the documented user has the right to.
BEHIND: dict[str, Any] = {
    "broker_transport_options": {"global_keyprefix": "shop:"},
    "result_backend_transport_options": {"global_keyprefix": "shop:"},
}


def documented_rules() -> str:
    """What docs/redis.md says that a user needs, as Redis' ``ACL SETUSER`` takes it."""
    block = re.search(r"^ACL SETUSER shop (.*?)^```", _DOCS.read_text(), re.DOTALL | re.MULTILINE)
    assert block is not None
    return " ".join(block[1].replace("\\\n", " ").split())


def use_all_there_is(site: Site) -> None:
    """Tasks, a chord, a retry, remote control and events, of both workers."""
    client = site.stock_client()
    for queue in ("ours", "stock"):
        run = "add.apply_async((1, 2), queue=queue, countdown=0.2, priority=5).get(timeout=9)"
        assert client(run, queue=queue) == 3
        chord = "chord([add.s(1, 1).set(queue=queue)] * 2, total.s().set(queue='ours'))().get(timeout=9)"
        assert client(chord, queue=queue) == 4
        assert client("retry.apply_async((1,), queue=queue).get(timeout=9)", queue=queue) == 1
    nodes = client("app.control.inspect(timeout=9, limit=2).ping()")
    assert set(nodes) == {"ours@site", "stock@site"}
    site.run("stock", "events", "--dump").wait_for_line("ours@site .*heartbeat")


def test_the_documented_rights_are_enough() -> None:
    rules = documented_rules().replace("<password>", "secret")
    with RedisServer(password="admin") as server:
        server.set_user("shop", rules)
        with running_site(server, broker_url=server.url_for("shop", "secret"), **BEHIND) as site:
            site.worker("ours", "ours", "-E")
            site.worker("stock", "stock", "-P", "solo", "-E")
            use_all_there_is(site)
        denied = [(entry["reason"], entry["object"], entry["context"]) for entry in acl_log(server)]
    assert denied == []


def acl_log(server: RedisServer) -> list[dict[str, Any]]:
    with server.admin() as admin:
        return list(admin.acl_log())
