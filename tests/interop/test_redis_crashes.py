"""Workers of both kinds on one queue, when one of them dies: each puts back what the other held, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.acceptance.processes import Process
from tests.interop.conftest import wait_until
from tests.interop.redis_site import Site, StockClient, running_site, unique
from tests.services import RedisServer

pytestmark = pytest.mark.timeout(90)

#: Stock workers look each second, and find what is three seconds old.
IMPATIENT: dict[str, Any] = {
    "broker_transport_options": {
        "visibility_timeout": 3,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }
}
OURS: dict[str, Any] = {"celeriac_lease": 2}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A server of its own: stock workers of any queue put back what is in ``unacked``."""
    with RedisServer() as server, running_site(server) as site:
        yield site


@pytest.fixture(scope="module")
def client(site: Site) -> StockClient:
    return site.stock_client()


def nothing_is_held(site: Site) -> None:
    """Results come before settlements, so that may take an instant."""
    keys = {"unacked", "unacked_index", "celeriac:leases"}
    wait_until(lambda: site.redis.exists(*keys) == 0)


@pytest.fixture
def start(site: Site) -> Iterator[Callable[..., Process]]:
    """Starts workers that end with the test: they would look after the messages of the next."""
    started: list[Process] = []

    def start(app: str, queue: str, *options: str, **settings: Any) -> Process:
        started.append(site.worker(app, queue, *options, "-n", f"{app}@site", **settings))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()
        worker.wait()


def test_an_impatient_stock_worker_leaves_alone_what_we_hold(
    site: Site, client: StockClient, start: Callable[..., Process]
) -> None:
    queue, name = unique("queue"), unique()
    start("ours", queue, **OURS)
    task_id = client("wait.apply_async((name,), queue=queue).id", name=name, queue=queue)
    site.notes(name, 1)
    start("stock", queue, "-P", "solo", **IMPATIENT)

    # More than twice what a stock worker waits before it takes a message away, and three leases.
    time.sleep(7)
    assert site.notes(name) == ["start ours first"]
    site.open_gate(name)

    assert client.result(task_id) == name
    assert site.notes(name) == ["start ours first", "end"]


def test_we_leave_alone_what_a_stock_worker_holds(
    site: Site, client: StockClient, start: Callable[..., Process]
) -> None:
    queue, name = unique("queue"), unique()
    start("stock", queue, "-P", "threads")
    task_id = client("wait.apply_async((name,), queue=queue).id", name=name, queue=queue)
    site.notes(name, 1)
    start("ours", queue, **OURS)

    time.sleep(3)
    assert site.notes(name) == ["start stock first"]
    site.open_gate(name)

    assert client.result(task_id) == name
    nothing_is_held(site)


def test_a_stock_worker_takes_over_from_one_of_ours_that_was_killed(
    site: Site, client: StockClient, start: Callable[..., Process]
) -> None:
    queue, names = unique("queue"), [unique() for _ in range(3)]
    ours = start("ours", queue, **OURS)
    task_ids = [client("wait.apply_async((name,), queue=queue).id", name=name, queue=queue) for name in names]
    for name in names:
        site.notes(name, 1)
    ours.kill()
    start("stock", queue, "-P", "threads", **IMPATIENT)

    for name in names:
        assert site.notes(name, 2) == ["start ours first", "start stock again"]
        site.open_gate(name)
    assert [client.result(task_id) for task_id in task_ids] == names
    start("ours", queue, **OURS)  # stock workers know nothing of leases: the next of ours strikes them out
    nothing_is_held(site)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_we_take_over_from_a_stock_worker_that_was_killed(
    site: Site, client: StockClient, start: Callable[..., Process], pool: str
) -> None:
    queue, names = unique("queue"), [unique() for _ in range(3)]
    stock = start("stock", queue, "-P", pool, "-c", "2", **IMPATIENT)
    task_ids = [client("wait.apply_async((name,), queue=queue).id", name=name, queue=queue) for name in names]
    for name in names[:2]:
        site.notes(name, 1)  # the third has been fetched, and waits in the worker
    stock.kill()
    start("ours", queue, **OURS, **IMPATIENT)

    for name in names:
        site.open_gate(name)
    assert [client.result(task_id) for task_id in task_ids] == names
    for name in names[:2]:
        assert site.notes(name) == ["start stock first", "start ours again", "end"]
    nothing_is_held(site)


def test_deliveries_are_counted_across_kinds_of_worker(
    site: Site, client: StockClient, start: Callable[..., Process]
) -> None:
    """A message that kills whoever takes it ends as a dead letter, although stock workers count nothing."""
    queue, name = unique("queue"), unique()
    options: dict[str, Any] = {**OURS, "celeriac_delivery_limit": 2}
    task_id = client("wait.apply_async((name,), queue=queue).id", name=name, queue=queue)
    for count in (1, 2):
        ours = start("ours", queue, **options)
        site.notes(name, count)
        ours.kill()
    ours = start("ours", queue, **options)

    with pytest.raises(Exception, match="delivered 2 times"):
        client.result(task_id)
    assert wait_until(lambda: site.redis.hlen("celeriac:dead")) == 1  # results come before settlements
    assert len(site.notes(name)) == 2
