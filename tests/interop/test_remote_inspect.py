"""``celery inspect``: the answers of our worker beside those of a stock one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.interop import remote_app
from tests.interop.remote_site import RemoteSite, wait_for

pytestmark = pytest.mark.timeout(90)

KINDS = {"ours": ("ours", "-c", "2"), "stock": ("stock", "-c", "2", "-P", "prefork", "-Ofair")}


@pytest.fixture(scope="module")
def site(remote_site: RemoteSite) -> RemoteSite:
    for node, (kind, *options) in KINDS.items():
        remote_site.worker(kind, node, *options)
    return remote_site


def both(site: RemoteSite, command: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    ours, stock = (site.inspect(node, command, *args, **kwargs) for node in KINDS)
    return ours, stock


def shape(value: Any) -> Any:
    """Keys and types, without what differs between any two workers."""
    if isinstance(value, dict):
        return {key: shape(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [shape(entry) for entry in value]
    return float if isinstance(value, (int, float)) else type(value)


@pytest.fixture
def running(site: RemoteSite, request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """The ids of a task that runs in each worker."""
    gate = f"{request.node.name}-gate".replace("/", "")
    sent = {node: site.send(node, "wait", f"{gate}-{node}") for node in KINDS}
    for node in KINDS:
        site.notes(f"start {gate}-{node}", 1)
        wait_for(lambda node=node: site.inspect(node, "active"))
    yield {node: result.id for node, result in sent.items()}
    for node, result in sent.items():
        site.open_gate(f"{gate}-{node}")
        result.get(timeout=10)


def test_active_has_the_same_keys_and_values(site: RemoteSite, running: dict[str, Any]) -> None:
    for safe in (False, True):
        (ours,), (stock,) = both(site, "active", safe)
        assert shape(ours) == shape(stock)
        for key in ("name", "type", "kwargs"):
            assert ours[key] == stock[key]
        assert ours["id"] == running["ours"]
        assert ours["delivery_info"] | {"routing_key": ""} == stock["delivery_info"] | {"routing_key": ""}


def test_query_task_tells_the_state_of_what_it_has(site: RemoteSite, running: dict[str, Any]) -> None:
    asked = [*running.values(), "unknown"]
    ours, stock = both(site, "query_task", *asked)
    assert set(ours) == {running["ours"]}
    assert set(stock) == {running["stock"]}
    assert shape(list(ours.values())) == shape(list(stock.values()))
    assert ours[running["ours"]][0] == "active"


def test_stats_have_the_same_keys(site: RemoteSite, running: dict[str, Any]) -> None:
    ours, stock = both(site, "stats")
    assert set(ours) == set(stock)
    assert set(ours["broker"]) == set(stock["broker"])
    for key in ("hostname", "port", "transport", "userid", "virtual_host"):
        assert ours["broker"][key] == stock["broker"][key]
    assert set(ours["rusage"]) == set(stock["rusage"])
    assert set(stock["pool"]) <= set(ours["pool"])
    assert ours["pool"]["max-concurrency"] == 2
    assert ours["total"] == {"wait": stock["total"]["wait"]}


@pytest.mark.parametrize(
    "command", ["reserved", "scheduled", "revoked", "ping", "active_queues", "registered"]
)
def test_what_there_is_to_say_of_an_idle_worker_is_the_same(site: RemoteSite, command: str) -> None:
    ours, stock = both(site, command)
    assert str(ours).replace("ours", "stock") == str(stock)


def test_our_app_asks_and_tells_workers_of_both_kinds(site: RemoteSite) -> None:
    app = remote_app.make_app("ours", site.url, site.folder, {})
    nodes = [f"{node}@site" for node in KINDS]
    assert app.control.inspect(nodes, timeout=10, limit=2).ping() == {node: {"ok": "pong"} for node in nodes}
    app.control.revoke("told-by-ours", reply=True, timeout=10, limit=2)
    for node in KINDS:
        assert "told-by-ours" in site.inspect(node, "revoked")
    app.close()


def test_registered_shows_the_attributes_that_are_asked_for(site: RemoteSite) -> None:
    ours, stock = both(site, "registered", "max_retries", "serializer")
    assert ours == stock
    assert "retry [max_retries=2 serializer=json]" in ours


def test_a_delayed_task_is_listed_and_the_brokers_until_it_is_due(site: RemoteSite) -> None:
    """A stock worker on Redis has taken it; ours has not, so that any worker may run it."""
    ours, stock = (site.send(node, "add", 1, 1, countdown=3600) for node in KINDS)
    if site.url.startswith("amqp"):
        # It waits in queues that all share, and AMQP cannot look into them.
        (scheduled,) = wait_for(lambda: site.inspect("stock", "scheduled"))
        assert scheduled["request"]["id"] == stock.id
        assert site.inspect("ours", "scheduled") == site.inspect("ours", "reserved") == []
        return
    (shown,) = wait_for(lambda: site.inspect("ours", "scheduled"))
    assert shown["request"]["id"] == ours.id
    if site.url.startswith("redis"):
        (scheduled,) = wait_for(lambda: site.inspect("stock", "scheduled"))
        assert scheduled["request"]["id"] == stock.id
        assert shape(shown) == shape(scheduled)
        assert shown["eta"][:10] == scheduled["eta"][:10]
    assert site.inspect("ours", "reserved") == []
    assert site.inspect("ours", "query_task", ours.id) == {}


def test_conf_has_the_same_settings_and_ours(site: RemoteSite) -> None:
    ours, stock = both(site, "conf", with_defaults=True)
    assert {key for key in set(ours) ^ set(stock) if not key.startswith("celeriac_")} <= {"broker_transport"}
    assert ours["task_default_queue"] == "ours"


def test_report_clock_and_memory_are_answered_alike(site: RemoteSite) -> None:
    ours, stock = both(site, "report")
    assert ours["ok"].splitlines()[:4] == stock["ok"].splitlines()[:4]
    for command in ("clock", "memsample", "memdump"):
        ours, stock = both(site, command)
        assert shape(ours) == shape(stock)


def test_revoked_tasks_are_told_to_workers_that_say_hello(site: RemoteSite) -> None:
    for node in KINDS:
        site.control(node, "revoke", task_id=f"revoked-{node}")
    ours, stock = both(site, "hello", "new@site", ["told"])
    assert set(ours) == set(stock)
    assert "revoked-ours" in ours["revoked"]
    assert "told" in site.inspect("ours", "revoked")


def test_celery_inspect_and_status_print_it(site: RemoteSite) -> None:
    status = site.run("stock", "status", "--timeout", "10", "-d", "ours@site")
    status.wait_for_line("ours@site.*OK")
    queues = site.run("stock", "inspect", "--timeout", "10", "-d", "ours@site", "active_queues", "--json")
    queues.wait_for_line('"name": "ours"')
