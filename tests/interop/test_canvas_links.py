"""``link``: what is called with a task's result, once it has one."""

from __future__ import annotations

import pytest
from celery import chain, chord, group
from tests.interop.canvas_site import PATIENCE, Place, unique

pytestmark = pytest.mark.timeout(60)


def test_a_callback_gets_the_result_and_is_known_as_soon_as_that(place: Place) -> None:
    result = place.add.apply_async((1, 2), link=place.add.s(10))

    assert result.get(timeout=PATIENCE) == 3
    assert [child.get(timeout=PATIENCE) for child in result.children] == [13]


def test_an_immutable_callback_does_not_get_it(place: Place) -> None:
    result = place.add.apply_async((1, 2), link=place.add.si(10, 10))

    assert result.get(timeout=PATIENCE) == 3
    assert result.children[0].get(timeout=PATIENCE) == 20


def test_all_callbacks_are_called(place: Place) -> None:
    first = place.add.s(1, 1)
    for number in range(3):
        first.link(place.add.s(number, z=100))

    result = first.apply_async()
    assert result.get(timeout=PATIENCE) == 2
    called = [task for child in result.children for task in getattr(child, "results", [child])]
    assert sorted(task.get(timeout=PATIENCE) for task in called) == [102, 103, 104]


def test_the_same_callback_is_linked_once(place: Place) -> None:
    name = unique()
    first = place.add.s(1, 1)
    callback = place.note.s(name, "called")
    first.link(callback)
    first.link(callback)
    last = first | place.note.s(name, "last").set(countdown=0.3)

    assert place.get(last) == 2
    assert sorted(place.notes(name, 2)) == ["called", "last"]


def test_callbacks_have_callbacks(place: Place) -> None:
    callback = place.add.s(1)
    callback.link(place.add.s(2))
    result = place.add.apply_async((1, 1), link=callback)

    assert result.get(timeout=PATIENCE) == 2
    (second,) = result.children
    assert second.get(timeout=PATIENCE) == 3
    assert second.children[0].get(timeout=PATIENCE) == 5


def test_canvas_is_a_callback(place: Place) -> None:
    names = [unique() for _ in range(3)]
    chained, grouped, chorded = names
    first = place.add.s(1, 1)
    first.link(chain(place.add.s(1), place.note.s(chained, "chain")))
    first.link(group(place.note.s(grouped, "one"), place.note.s(grouped, "two")))
    first.link(chord([place.add.s(1), place.add.s(2)], place.note.s(chorded, "chord")))

    assert place.get(first) == 2
    assert place.notes(chained, 1) == ["chain"]
    assert sorted(place.notes(grouped, 2)) == ["one", "two"]
    assert place.notes(chorded, 1) == ["chord"]


def test_a_chain_calls_back_at_its_end(place: Place) -> None:
    name = unique()
    chained = chain(place.add.s(1, 1), place.add.s(2))
    chained.link(place.tell.s(keep=name))

    assert place.get(chained) == 4
    assert '"args": [4]' in place.notes(name, 1)[0]


def test_members_of_a_group_call_back(place: Place) -> None:
    name = unique()
    members = [place.add.s(number, 0) for number in range(3)]
    for member in members:
        member.link(place.tell.s(keep=name))

    assert place.get(group(members)) == [0, 1, 2]
    assert sorted(line[-4:] for line in place.notes(name, 3)) == ["[0]}", "[1]}", "[2]}"]


def test_a_chord_calls_back_with_the_result_of_its_body(place: Place) -> None:
    name = unique()
    whole = chord([place.add.s(1, 1), place.add.s(2, 2)], place.total.s())
    whole.link(place.tell.s(keep=name))

    assert place.get(whole) == 6
    assert '"args": [6]' in place.notes(name, 1)[0]


def test_a_callback_knows_its_parent_and_root(place: Place) -> None:
    result = place.tell.apply_async(link=place.tell.s())

    first = result.get(timeout=PATIENCE)
    second = result.children[0].get(timeout=PATIENCE)
    assert (first["root"], first["parent"]) == (result.id, None)
    assert (second["root"], second["parent"]) == (result.id, result.id)


def test_a_failed_task_calls_no_callback_back(place: Place) -> None:
    name = unique()
    errback = place.note.si(name, "failed")
    result = place.fail.apply_async(link=place.note.s(name, "called"), link_error=errback)

    assert place.ended(result, "FAILURE")
    assert place.notes(name, 1) == ["failed"]
    assert not result.children or [child.id for child in result.children] != []


def test_a_task_that_retries_calls_back_once(place: Place) -> None:
    name = unique()
    result = place.retry.apply_async((7,), link=place.note.s(name, "called"))

    assert result.get(timeout=PATIENCE) == 7
    assert result.children[0].get(timeout=PATIENCE) == 7
    assert place.notes(name, 1) == ["called"]


def test_a_callback_waits_its_countdown(place: Place) -> None:
    result = place.add.apply_async((1, 2), link=place.add.s(1).set(countdown=0.2))

    assert result.get(timeout=PATIENCE) == 3
    assert result.children[0].get(timeout=PATIENCE) == 4
