"""Chains: each task gets what the one before it gave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import chain, chord, group
from tests.interop.canvas_site import PATIENCE, Place, unique

pytestmark = pytest.mark.timeout(60)

#: Chains, and what comes of them.
CHAINS: dict[str, tuple[Callable[[Place], Any], Any]] = {
    "two": (lambda p: p.add.s(1, 2) | p.add.s(3), 6),
    "one": (lambda p: chain(p.add.s(1, 2)), 3),
    "a list": (lambda p: chain([p.add.s(1, 2), p.add.s(3)]), 6),
    "twenty": (lambda p: chain(p.add.s(1, 1), *[p.add.s(1) for _ in range(19)]), 21),
    "immutable": (lambda p: p.add.s(1, 2) | p.add.si(5, 5), 10),
    "keywords": (lambda p: p.add.s(1, y=2) | p.add.s(y=3) | p.add.s(1, z=4), 11),
    "chain in a chain": (lambda p: p.add.s(1, 1) | (p.add.s(1) | p.add.s(1)) | p.add.s(1), 5),
    "group first": (lambda p: group(p.add.s(1, 1), p.add.s(2, 2)) | p.total.s(), 6),
    "group last": (lambda p: p.add.s(1, 1) | group(p.add.s(1), p.add.s(2)), [3, 4]),
    "group between": (lambda p: p.add.s(1, 1) | group(p.add.s(1), p.add.s(2)) | p.total.s() | p.add.s(1), 8),
    "group after group": (
        lambda p: group(p.add.s(1, 1), p.add.s(2, 2)) | group(p.total.s(), p.echo.s()),
        [6, [2, 4]],
    ),
    "three groups": (
        lambda p: (
            p.add.s(1, 1) | group(p.echo.s(), p.echo.s()) | group(p.total.s(), p.total.s()) | p.total.s()
        ),
        8,
    ),
    "group of one between": (lambda p: p.add.s(1, 1) | group(p.add.s(1)) | p.echo.s(), 3),
    "group of chains between": (
        lambda p: p.add.s(1, 1) | group(p.add.s(1) | p.add.s(1), p.add.s(2) | p.add.s(2)) | p.total.s(),
        10,
    ),
    "chord first": (lambda p: chord([p.add.s(1, 1), p.add.s(2, 2)], p.total.s()) | p.add.s(1), 7),
    "chord last": (lambda p: p.add.s(1, 1) | chord([p.add.s(1), p.add.s(2)], p.total.s()), 7),
    "chord after chord": (
        lambda p: chord([p.add.s(1, 1)] * 2, p.total.s()) | chord([p.add.s(1), p.add.s(2)], p.total.s()),
        11,
    ),
    "a task that retries": (lambda p: p.add.s(1, 1) | p.retry.s() | p.add.s(1), 3),
    "a task whose result is ignored": (lambda p: p.forgotten.s(4) | p.echo.s(), 4),
    "countdown": (lambda p: p.add.s(1, 1) | p.add.s(1).set(countdown=0.1) | p.add.s(1), 4),
}


def test_the_last_result(place: Place) -> None:
    found = place.get_all({name: make for name, (make, _) in CHAINS.items()})

    assert found == {name: expected for name, (_, expected) in CHAINS.items()}


def test_arguments_of_the_call_go_to_the_first(place: Place) -> None:
    assert place.get(place.add.s(1) | place.add.s(2), args=(3,)) == 6
    assert chain(place.add.s(1), place.add.s(2))(4).get(timeout=PATIENCE) == 7
    assert chain(place.add.s(1), place.add.s(2)).delay(5).get(timeout=PATIENCE) == 8


def test_the_given_id_is_that_of_the_last(place: Place) -> None:
    task_id = unique()
    result = (place.add.s(1, 1) | place.add.s(1)).apply_async(task_id=task_id)

    assert (result.id, result.get(timeout=PATIENCE)) == (task_id, 3)


def test_each_result_has_the_one_before_as_its_parent(place: Place) -> None:
    result = (place.add.s(1, 1) | place.add.s(1) | place.add.s(1)).apply_async()

    assert result.get(timeout=PATIENCE) == 4
    assert (result.parent.result, result.parent.parent.result) == (3, 2)
    assert result.parent.parent.parent is None
    assert [child.id for child in result.parent.children] == [result.id]


def test_each_task_knows_the_first_and_the_one_before(place: Place) -> None:
    last = (place.tell.s() | place.tell.s() | place.tell.s()).apply_async()

    last.get(timeout=PATIENCE)
    told = [result.result for result in (last.parent.parent, last.parent, last)]
    ids = [each["id"] for each in told]
    assert [each["root"] for each in told] == [ids[0]] * 3
    assert [each["parent"] for each in told] == [None, *ids[:2]]


def test_a_chain_ends_where_a_task_fails(place: Place) -> None:
    name = unique()
    chained = place.add.s(1, 1) | place.fail.s() | place.note.s(name, "never") | place.note.s(name, "never")
    last = chained.apply_async(link_error=place.note.si(name, "failed"))

    with pytest.raises(ValueError, match="no"):
        last.get(timeout=PATIENCE)
    assert place.ended(last, "FAILURE")
    assert all(place.ended(result, "FAILURE") for result in (last.parent, last.parent.parent))
    assert last.parent.parent.parent.result == 2
    assert place.notes(name, 1) == ["failed"]


def test_a_chain_may_be_run_again(place: Place) -> None:
    chained = place.add.s(1, 1) | group(place.add.s(1), place.add.s(2)) | place.total.s()

    assert [place.get(chained) for _ in range(2)] == [7, 7]


def test_a_chain_travels_as_json(place: Place) -> None:
    chained = place.add.s(1, 1) | group(place.add.s(1), place.add.s(2)) | place.total.s()

    caller = place.call.apply_async(kwargs={"to": chained})
    assert place.client.AsyncResult(caller.get(timeout=PATIENCE)).get(timeout=PATIENCE) == 7
