"""``link_error``, and what becomes of chains, groups and chords in which a task fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError
from tests.interop.canvas_site import PATIENCE, Place, unique

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings("ignore:task_allow_error_cb_on_chord_header"),
]


def failed(place: Place, canvas: Any) -> Any:
    """Publish a canvas, wait until what it ends with has failed, and give its result."""
    result = canvas.apply_async()
    assert place.ended(result, "FAILURE")
    return result


def test_an_errback_of_the_old_style_gets_the_id(place: Place) -> None:
    name = unique()
    result = failed(place, place.fail.s().on_error(place.old_errback.s(name)))

    assert place.notes(name, 1) == [f"old {result.id}"]


def test_an_errback_of_the_new_style_gets_request_exception_and_traceback(place: Place) -> None:
    name = unique()
    result = failed(place, place.fail.s().on_error(place.new_errback.s(name)))

    assert place.notes(name, 1) == [f"new {result.id} ValueError True"]


def test_stored_arguments_come_after_those(place: Place) -> None:
    names = [unique(), unique()]
    failing = place.fail.s()
    failing.link_error(place.old_errback.s(name=names[0]))
    failing.link_error(place.new_errback.s(name=names[1]))
    result = failed(place, failing)

    assert place.notes(names[0], 1) == [f"old {result.id}"]
    assert place.notes(names[1], 1) == [f"new {result.id} ValueError True"]


def test_an_immutable_errback_gets_its_own_arguments(place: Place) -> None:
    names = [unique(), unique()]
    failing = place.fail.s()
    failing.link_error(place.old_errback.si("given", names[0]))
    failing.link_error(place.note.si(names[1], "called"))
    failed(place, failing)

    assert place.notes(names[0], 1) == ["old given"]
    assert place.notes(names[1], 1) == ["called"]


def test_several_errbacks(place: Place) -> None:
    name = unique()
    failing = place.fail.s()
    for text in ("first", "second", "third"):
        failing.link_error(place.note.si(name, text))
    failed(place, failing)

    assert sorted(place.notes(name, 3)) == ["first", "second", "third"]


def test_canvas_is_an_errback(place: Place) -> None:
    name = unique()
    after = chain(place.add.si(1, 1), place.tell.s(keep=name))
    failed(place, place.fail.s().on_error(after))

    assert '"args": [2]' in place.notes(name, 1)[0]


def test_no_errback_is_called_when_all_is_well_in_the_end(place: Place) -> None:
    name = unique()
    result = place.retry.s(1).on_error(place.note.si(name, "never")).apply_async()

    assert result.get(timeout=PATIENCE) == 1
    assert place.get(place.note.si(name, "end").set(countdown=0.1)) is None
    assert place.notes(name, 1) == ["end"]


@pytest.mark.parametrize("position", range(3))
def test_the_errback_of_a_chain_is_called_once_for_the_task_that_failed(place: Place, position: int) -> None:
    name = unique()
    steps = [place.add.s(1, 1), place.echo.s(), place.echo.s()]
    steps[position] = place.fail.s()
    chained = chain(*steps)
    chained.link_error(place.old_errback.s(name))
    last = failed(place, chained)

    results = [last.parent.parent, last.parent, last]
    assert place.notes(name, 1) == [f"old {results[position].id}"]
    assert [place.ended(result) for result in results] == [index < position for index in range(3)]


def test_the_errback_of_a_group_is_called_for_each_that_failed(place: Place) -> None:
    name = unique()
    members = group(place.fail.s(), place.add.s(1, 1), place.fail.s())
    members.link_error(place.old_errback.s(name))
    result = members.apply_async()

    with pytest.raises(ValueError, match="no"):
        result.get(timeout=PATIENCE)
    assert all(
        place.ended(each, state)
        for each, state in zip(result, ("FAILURE", "SUCCESS", "FAILURE"), strict=True)
    )
    assert sorted(place.notes(name, 2)) == sorted(f"old {result[index].id}" for index in (0, 2))


#: Chords whose header fails, the failing parts in some depth.
FAILING: dict[str, Callable[[Place], Any]] = {
    "first": lambda p: [p.fail.s(), p.add.s(1, 1)],
    "last": lambda p: [p.add.s(1, 1), p.add.s(2, 2), p.fail.s()],
    "all": lambda p: [p.fail.s(), p.fail.s()],
    "only": lambda p: [p.fail.s()],
    "first of a chain": lambda p: [p.fail.s() | p.echo.s(), p.add.s(1, 1)],
    "last of a chain": lambda p: [p.add.s(1, 1) | p.fail.s(), p.add.s(1, 1)],
    "in a group": lambda p: [group(p.fail.s(), p.add.s(1, 1)), p.add.s(1, 1)],
    "in the body of a chord": lambda p: [chord([p.add.s(1, 1)] * 2, p.fail.s()), p.add.s(1, 1)],
    "replaced": lambda p: [p.swap.s(to=p.fail.si()), p.add.s(1, 1)],
}


def test_a_chord_whose_header_fails(place: Place) -> None:
    note = unique()
    bodies = {name: place.note.s(note, "body").on_error(place.old_errback.s(note)) for name in FAILING}
    results = {name: chord(make(place), bodies[name]).apply_async() for name, make in FAILING.items()}

    assert {name: place.ended(result, "FAILURE") for name, result in results.items()} == dict.fromkeys(
        FAILING, True
    )
    assert {type(result.result) for result in results.values()} == {ChordError}
    called = place.notes(note, len(FAILING))
    assert sorted(called) == sorted(f"old {result.id}" for result in results.values())


def test_waiting_for_a_chord_raises_what_its_part_raised(place: Place) -> None:
    result = chord([place.add.s(1, 1), place.fail.s()], place.total.s()).apply_async()

    with pytest.raises((ValueError, ChordError), match="no"):
        result.get(timeout=PATIENCE)


def test_a_chord_whose_body_fails(place: Place) -> None:
    note = unique()
    body = place.fail.s().on_error(place.new_errback.s(note))
    result = failed(place, chord([place.add.s(1, 1)] * 2, body))

    assert repr(result.result) == "ValueError('no')"
    assert place.notes(note, 1) == [f"new {result.id} ValueError True"]


def test_an_errback_of_a_chord_whose_header_fails(place: Place) -> None:
    note = unique()
    whole = chord([place.add.s(1, 1), place.fail.s()], place.total.s())
    whole.link_error(place.old_errback.s(note))
    result = failed(place, whole)

    assert place.notes(note, 1) == [f"old {result.id}"]


def test_the_body_of_a_failed_chord_has_its_errbacks_as_children(place: Place) -> None:
    body = place.total.s().on_error(place.old_errback.s(unique()))
    result = failed(place, chord([place.add.s(1, 1), place.fail.s()], body))

    (called,) = result.children
    assert all(place.ended(errback) for errback in called.results)
    assert len(called.results) == 1


def test_errbacks_of_a_header_where_they_are_asked_for(place: Place) -> None:
    note = unique()
    place.client.conf.task_allow_error_cb_on_chord_header = True
    try:
        whole = chord([place.add.s(1, 1), place.fail.s(), place.fail.s()], place.total.s())
        whole.link_error(place.old_errback.s(note))
        result = failed(place, whole)
    finally:
        place.client.conf.task_allow_error_cb_on_chord_header = False

    header = [result.parent[index].id for index in (1, 2)]
    assert sorted(place.notes(note, 3)) == sorted(f"old {task_id}" for task_id in (*header, result.id))


@pytest.mark.parametrize("header", ["add fail", "fail fail"])
def test_all_that_follows_a_failed_chord_fails(place: Place, header: str) -> None:
    first = chord([getattr(place, name).si(1, 1) for name in header.split()], place.total.s())
    chained = chain(first, chord([place.add.s(1), place.add.s(2)], place.total.s()), place.add.s(1))
    result = group(chained, place.add.s(1, 1)).apply_async()

    assert place.ended(result[0], "FAILURE")
    assert place.ended(result[1])


def test_a_chord_after_a_task_that_failed(place: Place) -> None:
    note = unique()
    chained = place.fail.s() | group(place.add.s(1), place.add.s(2)) | place.note.s(note, "never")
    chained.link_error(place.old_errback.s(note))
    result = failed(place, chained)

    assert repr(result.result) == "ValueError('no')"
    assert len(place.notes(note, 1)) == 1


def test_an_errback_that_fails_harms_nobody(place: Place) -> None:
    note = unique()
    failing = place.fail.s()
    failing.link_error(place.fail.s())
    failing.link_error(place.old_errback.s(note))
    result = failed(place, failing)

    assert repr(result.result) == "ValueError('no')"
    assert place.notes(note, 1) == [f"old {result.id}"]
