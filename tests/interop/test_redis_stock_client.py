"""Stock clients, in processes that know nothing of celeriac, whose tasks our worker runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery.exceptions import NotRegistered, TaskRevokedError, TimeLimitExceeded
from tests.interop.redis_site import PATIENCE, Site, StockClient, unique

pytestmark = pytest.mark.timeout(60)


def now() -> datetime:
    return datetime.now(UTC)


OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "keyword arguments": {"kwargs": {"one": 1, "two": [None, {"three": 3.5}]}},
    "text": {"args": ["naïve ☃ 🎉", "\x00\x16", ""]},
    "countdown": {"countdown": 0.4},
    "aware eta": lambda: {"eta": now().astimezone() + timedelta(seconds=0.5)},
    "eta elsewhere": lambda: {"eta": now() + timedelta(seconds=0.5)},
    "naive eta": lambda: {"eta": (now() + timedelta(seconds=0.5)).replace(tzinfo=None)},
    "eta in the past": lambda: {"eta": now() - timedelta(hours=1)},
    "expires in seconds": {"expires": 60},
    "expires at a time": lambda: {"expires": now() + timedelta(minutes=5)},
    "countdown and expires": {"countdown": 0.2, "expires": 60},
    "priority": {"priority": 7},
    "priority 0": {"priority": 0},
    "gzip": {"compression": "gzip"},
    "zlib": {"compression": "zlib", "args": ["x" * 10_000]},
    "bzip2": {"compression": "bzip2"},
    "yaml-free json": {"serializer": "json"},
    "headers": {"headers": {"x-tenant": "acme", "x-deep": {"a": [1, None]}}},
    "time limits": {"time_limit": 30, "soft_time_limit": 20},
    "a hard limit alone": {"time_limit": 30.5},
    "shadow": {"shadow": "another name"},
    "retry policy": {"retry": True, "retry_policy": {"max_retries": 2, "interval_start": 0}},
    "no publishing again": {"retry": False},
    "reply to": {"reply_to": "somebody"},
    "correlation id": {"correlation_id": "mine"},
    "stamps": {"stamped_headers": ["x-stamp"], "x-stamp": "value"},
    "relations": {"root_id": "root", "parent_id": "parent", "group_id": "group"},
    "ids of its own": {"task_id": "an id of one's own"},
    "repr": {"argsrepr": "secret", "kwargsrepr": "secret"},
    "transient": {"delivery_mode": 1},
    "a property": {"app_id": "shop"},
}

#: What depends on who runs it, and when.
DIFFERS = ("hostname", "eta", "expires")


@pytest.fixture(scope="module")
def site(redis_site: Site) -> Site:
    redis_site.shared("ours", "prefork")
    return redis_site


@pytest.fixture(scope="module")
def client(site: Site) -> StockClient:
    return site.stock_client()


@pytest.fixture(scope="module")
def other_worker(site: Site) -> str:
    """The queue of a worker with settings of its own."""
    site.worker(
        "ours",
        "routed",
        accept_content=["json", "pickle"],
        celeriac_unknown_task_grace=0.2,
        task_queues=[["routed", "orders", "direct", "order.new"]],
    )
    return "routed"


def test_the_client_knows_nothing_of_celeriac(client: StockClient) -> None:
    assert client("'celeriac' in sys.modules") is False


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_means_what_it_means_to_a_stock_worker(client: StockClient, name: str) -> None:
    made = OPTIONS[name]
    options = made() if callable(made) else made  # times begin with the test

    def told(queue: str) -> dict[str, Any]:
        # One id for both, and a queue that only the worker itself need know of.
        given = {"task_id": unique("task"), **options, "queue": queue}
        given["task_id"] = f"{given['task_id']} {queue}"
        text = client("describe.apply_async(**given).get(timeout=patience)", given=given, patience=PATIENCE)
        values: dict[str, Any] = text
        for key in ("id", "root_id", "correlation_id"):
            values[key] = values[key] == given["task_id"] or values[key]
        assert values["delivery_info"].pop("routing_key") == queue
        for key in ("eta", "expires"):
            if "countdown" not in given and not isinstance(given.get(key), (int, float)):
                continue
            values[key] = values[key] and datetime.fromisoformat(values[key]).utcoffset()
        return values

    ours, stock = told("ours"), told("prefork")

    assert ours.pop("hostname") == "ours@site"
    assert stock.pop("hostname") == "prefork@site"
    assert ours == stock


def test_a_countdown_is_kept(client: StockClient, site: Site) -> None:
    name = unique()
    started = datetime.now(UTC)
    task_id = client("note.apply_async((name, 'late'), countdown=0.8).id", name=name)
    client("note.apply_async((name, 'at once')).get(timeout=9)", name=name)
    client.result(task_id)

    assert datetime.now(UTC) - started >= timedelta(seconds=0.8)
    assert site.notes(name) == ["at once", "late"]


def test_what_has_expired_does_not_run(client: StockClient, site: Site) -> None:
    name = unique()
    task_id = client("note.apply_async((name, 'never'), countdown=0.4, expires=0.2).id", name=name)

    with pytest.raises(TaskRevokedError):
        client.result(task_id)
    assert site.notes(name) == []


def test_pickle_is_refused_unless_accepted(client: StockClient) -> None:
    with pytest.raises(Exception, match="application/x-python-serialize"):
        client("add.apply_async((1, 2), serializer='pickle').get(timeout=9)")
    assert client("add.delay(2, 2).get(timeout=9)") == 4


def test_pickle_is_taken_where_it_is_accepted(client: StockClient, other_worker: str) -> None:
    expression = "echo.apply_async(({1, 2},), serializer='pickle', queue=queue).get(timeout=9)"

    assert sorted(client(expression, queue=other_worker)) == [1, 2]


def test_callbacks_are_called(client: StockClient, site: Site) -> None:
    name = unique()

    client("add.apply_async((1, 2), link=note.si(name, 'done'))", name=name)
    client(
        "add.apply_async((1, 2), link=[note.si(name, 'done'), echo.s() | note.si(name, 'done')])", name=name
    )

    assert site.notes(name, 3) == ["done"] * 3


def test_errbacks_of_both_kinds_are_called(client: StockClient, site: Site) -> None:
    name = unique()

    task_id = client("fail.apply_async(('no',), link_error=[note.si(name, 'failed')]).id", name=name)
    with pytest.raises(ValueError, match="no"):
        client.result(task_id)
    assert site.notes(name, 1) == ["failed"]

    task_id = client("fail.apply_async(('no',), link_error=note_error.s(name)).id", name=name)
    assert site.notes(name, 2)[1] == f"{task_id} ValueError('no')"


def test_time_limits_hold(client: StockClient) -> None:
    assert client("soften.apply_async((10,), soft_time_limit=0.3).get(timeout=9)") == "softly"
    with pytest.raises(TimeLimitExceeded):
        client("sleep.apply_async((10,), time_limit=0.5).get(timeout=9)")


def test_an_ignored_result_is_not_kept(client: StockClient, site: Site) -> None:
    name = unique()
    task_id = client("note.apply_async((name, 'ran'), ignore_result=True).id", name=name)
    site.notes(name, 1)
    client("echo.delay(1).get(timeout=9)")

    assert client("AsyncResult(task_id).result", task_id=task_id) is None


def test_routing_by_exchange_reaches_the_queue(client: StockClient, other_worker: str) -> None:
    """A client that does not know the queue relies on the bindings that a worker has declared."""
    options = {"exchange": "orders", "routing_key": "order.new"}

    assert client("add.apply_async((1, 2), **options).get(timeout=9)", options=options) == 3


def test_send_task_needs_no_task(client: StockClient, other_worker: str) -> None:
    assert client("app.send_task('add', (1, 2)).get(timeout=9)") == 3
    with pytest.raises(NotRegistered, match="nowhere"):
        client("app.send_task('nowhere', queue=queue).get(timeout=9)", queue=other_worker)


def test_results_are_those_of_a_stock_worker(client: StockClient, site: Site) -> None:
    def meta(queue: str) -> dict[str, Any]:
        task_id = client("add.apply_async((1,), {'y': 2}, queue=queue).id", queue=queue)
        client.result(task_id)
        found: dict[str, Any] = client("app.backend.get_task_meta(task_id)", task_id=task_id)
        assert found.pop("task_id") == task_id
        assert found.pop("date_done")
        return found

    stock, ours = meta("prefork"), meta("ours")
    extended = {name: ours.pop(name) for name in set(ours) - set(stock)}

    assert ours == stock
    assert extended["name"] == "add"
    assert (extended["args"], extended["kwargs"]) == ([1], {"y": 2})
    assert (extended["queue"], extended["worker"]) == ("ours", "ours@site")


def test_failures_come_back_as_what_was_raised(client: StockClient) -> None:
    def failure(queue: str) -> Any:
        expression = (
            "(lambda result: (result.get(timeout=patience, propagate=False), result.state, result.traceback))"
            "(fail.apply_async(('sorry',), queue=queue))"
        )
        return client(expression, queue=queue, patience=PATIENCE)

    ours, stock = failure("ours"), failure("prefork")

    assert repr(ours[0]) == repr(stock[0]) == "ValueError('sorry')"
    assert ours[1] == stock[1] == "FAILURE"
    assert ours[2].splitlines()[-1] == stock[2].splitlines()[-1] == "ValueError: sorry"


@pytest.mark.parametrize("task", ["retry", "autoretry"])
def test_retries(client: StockClient, task: str) -> None:
    assert client("app.send_task(task, (2,)).get(timeout=9)", task=task) == 2


def test_retries_come_to_an_end(client: StockClient) -> None:
    with pytest.raises(KeyError):
        client("autoretry.delay(5).get(timeout=9)")
    with pytest.raises(Exception, match="Can't retry"):
        client("retry.delay(5).get(timeout=9)")


def test_a_running_task_is_seen_to_run(client: StockClient, site: Site) -> None:
    name = unique()
    task_id = client("wait.delay(name).id", name=name)
    site.notes(name, 1)

    assert client("AsyncResult(task_id).state", task_id=task_id) == "STARTED"
    assert client("AsyncResult(task_id).worker", task_id=task_id) == "ours@site"
    site.open_gate(name)
    assert client.result(task_id) == name


def test_states_of_ones_own_are_seen(client: StockClient, site: Site) -> None:
    name = unique()
    task_id = client("halfway.delay(name).id", name=name)

    while (state := client("AsyncResult(task_id).state", task_id=task_id)) != "HALFWAY":
        assert state in ("PENDING", "STARTED")
    assert client("AsyncResult(task_id).info", task_id=task_id) == {"done": 1}
    site.open_gate(name)
    assert client.result(task_id) == name


def test_results_are_waited_for_by_many_and_in_any_order(client: StockClient) -> None:
    expression = "[result.get(timeout=9) for result in reversed([add.delay(n, 1) for n in range(50)])]"

    assert client(expression) == list(range(50, 0, -1))


def test_forgotten_results_are_gone(client: StockClient, site: Site) -> None:
    forget = "(lambda result: (result.get(timeout=9), result.forget(), AsyncResult(result.id).state))"

    assert client(f"{forget}(add.delay(1, 1))") == (2, None, "PENDING")


def test_a_waiting_task_is_revoked(client: StockClient, site: Site) -> None:
    name = unique()
    task_id = client("note.apply_async((name, 'never'), countdown=0.7).id", name=name)
    client("app.control.revoke(task_id)", task_id=task_id)

    with pytest.raises(TaskRevokedError):
        client.result(task_id)
    assert site.notes(name) == []


def test_a_running_task_is_terminated(client: StockClient, site: Site) -> None:
    name = unique()
    task_id = client("wait.delay(name).id", name=name)
    site.notes(name, 1)
    client("app.control.revoke(task_id, terminate=True)", task_id=task_id)

    with pytest.raises(TaskRevokedError):
        client.result(task_id)
    site.open_gate(name)


def test_a_task_is_revoked_by_its_stamp(client: StockClient, site: Site) -> None:
    name = unique()
    task_id = client(
        "note.apply_async((name, 'never'), countdown=0.7, stamped_headers=['job'], job=name).id", name=name
    )
    client("app.control.revoke_by_stamped_headers({'job': name})", name=name)

    with pytest.raises(TaskRevokedError):
        client.result(task_id)
    assert site.notes(name) == []


def test_tasks_that_ignore_and_reject(client: StockClient) -> None:
    ignored = client("ignoring.delay().id")
    client("echo.delay(1).get(timeout=9)")

    assert client("AsyncResult(task_id).state", task_id=ignored) == "STARTED"
    with pytest.raises(Exception, match="unwanted"):
        client("rejecting.delay().get(timeout=9)")
