"""Chains, groups and chords by clients and workers of both kinds, also with parts on either side."""

from __future__ import annotations

from typing import Any

import pytest
from celery import chain, chord, group
from tests.interop.redis_site import Site, StockClient, unique

from celeriac import Celery

pytestmark = pytest.mark.timeout(60)

#: Canvas of queue ``a`` and ``b``, and what comes of it.
CANVAS: dict[str, tuple[str, Any]] = {
    "chain": ("add.s(1, 2).set(queue=a) | add.s(3).set(queue=b) | add.s(4).set(queue=a)", 10),
    "chain of one": ("chain(add.s(1, 2).set(queue=a))", 3),
    "immutable": ("add.s(1, 2).set(queue=a) | add.si(5, 5).set(queue=b)", 10),
    "group": ("group([add.s(n, 1).set(queue=(a, b)[n % 2]) for n in range(6)])", [1, 2, 3, 4, 5, 6]),
    "group of one": ("group([add.s(1, 1).set(queue=a)])", [2]),
    "chord": ("chord([add.s(n, 1).set(queue=a) for n in range(5)], total.s().set(queue=b))", 15),
    "mixed chord": (
        "chord([add.s(n, 1).set(queue=(a, b)[n % 2]) for n in range(5)], total.s().set(queue=b))",
        15,
    ),
    "chord of one": ("chord([add.s(1, 1).set(queue=a)], total.s().set(queue=b))", 2),
    "chord of fifty": (
        "chord([add.s(n, 0).set(queue=(a, b)[n % 2]) for n in range(50)], echo.s().set(queue=b))",
        [*range(50)],
    ),
    "group in a chain": (
        "add.s(1, 1).set(queue=a) | group([add.s(n).set(queue=b) for n in range(3)]) | total.s().set(queue=a)",
        9,
    ),
    "chord in a chain": (
        "chord([add.s(n, 1).set(queue=a) for n in range(3)], total.s().set(queue=b)) | add.s(10).set(queue=a)",
        16,
    ),
    "chains in a chord": (
        "chord([add.s(n, 1).set(queue=a) | add.s(1).set(queue=b) for n in range(3)], total.s().set(queue=a))",
        9,
    ),
    "chord in a chord": (
        """chord([chord([add.s(n, m).set(queue=a) for n in range(2)], total.s().set(queue=b)) for m in range(2)],
        echo.s().set(queue=a))""",
        [1, 3],
    ),
    "group in a group": (
        "group([group([add.s(1, 1).set(queue=a), add.s(2, 2).set(queue=b)]), add.s(3, 3).set(queue=a)])",
        [2, 4, 6],
    ),
    "a body that is a chain": (
        "chord([add.s(n, 1).set(queue=a) for n in range(2)], total.s().set(queue=b) | add.s(1).set(queue=a))",
        4,
    ),
    "a body that is a group": (
        """chord([add.s(n, 1).set(queue=a) for n in range(2)],
        group([total.s().set(queue=b), echo.s().set(queue=a)]))""",
        [3, [1, 2]],
    ),
    "a task that is replaced": ("replaced.s(1, b).set(queue=a)", 2),
    "a replaced task in a chain": (
        "add.s(1, 1).set(queue=a) | replaced.s(b).set(queue=a) | add.s(1).set(queue=b)",
        4,
    ),
    "a replaced task in a chord": (
        "chord([replaced.s(n, b).set(queue=a) for n in range(3)], total.s().set(queue=a))",
        6,
    ),
    "a task that retries in a chord": (
        "chord([retry.s(n).set(queue=a) for n in range(3)], total.s().set(queue=b))",
        3,
    ),
}

BORDERS = [("ours", "ours"), ("ours", "prefork"), ("prefork", "ours"), ("ours-prefork", "threads")]


@pytest.fixture(scope="module")
def site(redis_site: Site) -> Site:
    redis_site.shared("ours", "prefork", "ours-prefork", "threads")
    return redis_site


@pytest.fixture(scope="module")
def client(site: Site) -> StockClient:
    return site.stock_client()


@pytest.fixture(scope="module")
def ours(site: Site) -> Celery:
    return site.our_client()


@pytest.mark.parametrize("queues", BORDERS, ids="-".join)
@pytest.mark.parametrize("name", CANVAS)
def test_a_stock_client_gets_the_result(client: StockClient, name: str, queues: tuple[str, str]) -> None:
    text, result = CANVAS[name]

    assert client(f"({text}).apply_async().get(timeout=15)", a=queues[0], b=queues[1]) == result


@pytest.mark.parametrize("queues", BORDERS[1:3], ids="-".join)
@pytest.mark.parametrize(
    "name", [name for name in CANVAS if not name.startswith("group") and name != "a body that is a group"]
)
async def test_a_client_of_ours_gets_the_result(ours: Celery, name: str, queues: tuple[str, str]) -> None:
    text, result = CANVAS[name]
    names = {"a": queues[0], "b": queues[1], "chain": chain, "chord": chord, "group": group}

    async with ours:
        handle = await ours.enqueue(eval(text, {**ours.tasks, **names}))
        assert await handle.result(15) == result


@pytest.mark.parametrize("queues", BORDERS, ids="-".join)
def test_the_body_of_a_chord_runs_once(client: StockClient, site: Site, queues: tuple[str, str]) -> None:
    names = [unique() for _ in range(5)]
    expression = (
        "[chord([add.s(n, 1).set(queue=(a, b)[n % 2]) for n in range(10)],"
        " note.s(name, 'body').set(queue=b)).apply_async().get(timeout=15) for name in names]"
    )
    client(expression, a=queues[0], b=queues[1], names=names)

    assert [site.notes(name, 1) for name in names] == [["body"]] * 5


@pytest.mark.parametrize("queues", [*BORDERS, ("prefork", "prefork")], ids="-".join)
def test_a_chord_whose_part_fails_fails(client: StockClient, site: Site, queues: tuple[str, str]) -> None:
    name = unique()
    expression = (
        "chord([add.s(1, 1).set(queue=a), fail.s('no').set(queue=a), add.s(1, 1).set(queue=b)],"
        " total.s().set(queue=b).on_error(note.si(name, 'failed').set(queue=a))).apply_async()"
    )

    with pytest.raises(ValueError, match="no"):
        client(f"{expression}.get(timeout=15)", a=queues[0], b=queues[1], name=name)
    body = "(lambda body: (body.get(timeout=15, propagate=False), body.state))"
    error, state = client(f"{body}({expression})", a=queues[0], b=queues[1], name=name)
    assert state == "FAILURE"
    assert type(error).__name__ == "ChordError"
    assert "raised ValueError('no'" in str(error)
    assert site.notes(name, 2) == ["failed"] * 2


@pytest.mark.parametrize("queues", BORDERS, ids="-".join)
def test_a_chain_ends_where_it_fails(client: StockClient, site: Site, queues: tuple[str, str]) -> None:
    name = unique()
    expression = (
        "chain(add.s(1, 1).set(queue=a), fail.s('no').set(queue=b), note.s(name, 'never').set(queue=a))"
        ".apply_async(link_error=note.si(name, 'failed').set(queue=a)).get(timeout=15)"
    )

    with pytest.raises(ValueError, match="no"):
        client(expression, a=queues[0], b=queues[1], name=name)
    assert site.notes(name, 1) == ["failed"]


@pytest.mark.parametrize("queues", BORDERS, ids="-".join)
def test_tasks_call_others(client: StockClient, queues: tuple[str, str]) -> None:
    a, b = queues
    task_id = client("nested.apply_async((20, b), queue=a).get(timeout=15)", a=a, b=b)

    assert client.result(task_id) == 21


def test_relations_are_known_on_both_sides(client: StockClient) -> None:
    found = client(
        "(lambda last: (last.parent.get(timeout=15) and last.parent.id, last.get(timeout=15)))"
        "((add.s(1, 1).set(queue='prefork') | describe.s().set(queue='ours')).apply_async())"
    )

    first, told = found
    assert (told["root_id"], told["parent_id"]) == (first, first)
    children = client("[child.id for child in AsyncResult(task_id).children]", task_id=first)
    assert children == [told["id"]]


async def test_records_of_ours_know_a_stock_chain(ours: Celery, client: StockClient) -> None:
    text = (
        "(lambda last: (last.get(timeout=15), last.parent.id, last.id))"
        "((add.s(1, 1).set(queue='ours') | add.s(2).set(queue='prefork')).apply_async())"
    )
    _, first, last = client(text)
    async with ours:
        records = [await ours.handle(task_id).record() for task_id in (first, last)]

    assert [record.state for record in records] == ["SUCCESS", "SUCCESS"]
    assert [record.result for record in records] == [2, 4]
    assert (records[0].args, records[0].kwargs) == ([1, 1], {})
    assert records[0].name == "add"
