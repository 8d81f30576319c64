"""``Task.replace``: another task, or canvas, that takes a task's place: its id, its callbacks, its part in a canvas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import chain, chord, group
from tests.interop.canvas_site import PATIENCE, Place, unique

pytestmark = pytest.mark.timeout(60)

#: What takes the place of a task, and what comes of it.
REPLACEMENTS: dict[str, tuple[Callable[[Place], Any], Any]] = {
    "a task": (lambda p: p.add.si(1, 2), 3),
    "a chain": (lambda p: chain(p.add.si(1, 2), p.add.s(3), p.add.s(4)), 10),
    "a group": (lambda p: group(p.add.si(1, 2), p.add.si(3, 4)), [3, 7]),
    "a chord": (lambda p: chord([p.add.si(1, 2), p.add.si(3, 4)], p.total.s()), 10),
    "a chain with a group": (lambda p: p.add.si(1, 2) | group(p.add.s(1), p.add.s(2)) | p.total.s(), 9),
    "a chain that ends in a group": (lambda p: p.add.si(1, 2) | group(p.add.s(1), p.add.s(2)), [4, 5]),
    "a group of chains": (lambda p: group(p.add.si(1, 2) | p.add.s(1), p.add.si(3, 4) | p.add.s(1)), [4, 8]),
    "a chord of chords": (
        lambda p: chord([chord([p.add.si(1, 1), p.add.si(2, 2)], p.total.s()), p.add.si(1, 1)], p.echo.s()),
        [6, 2],
    ),
    "another that is replaced": (lambda p: p.swap.si(to=p.swap.si(to=p.add.si(1, 2))), 3),
    "a task that retries": (lambda p: p.retry.si(7), 7),
    "a map": (lambda p: p.add.starmap([(1, 2), (3, 4)]), [3, 7]),
}


EXPECTED = {name: expected for name, (_, expected) in REPLACEMENTS.items()}


def around(place: Place, wrap: Callable[[Any], Any]) -> dict[str, Any]:
    """What comes of a canvas around a task that is replaced, by what takes its place."""

    def canvas(make: Callable[[Place], Any]) -> Callable[[Place], Any]:
        return lambda place: wrap(place.swap.si(to=make(place)))

    return place.get_all({name: canvas(make) for name, (make, _) in REPLACEMENTS.items()})


def test_the_result_is_that_of_the_replacement(place: Place) -> None:
    assert around(place, lambda replaced: replaced) == EXPECTED


def test_what_follows_in_a_chain_gets_it(place: Place) -> None:
    assert around(place, lambda replaced: replaced | place.echo.s() | place.echo.s()) == EXPECTED


def test_a_chord_gets_it_for_a_part(place: Place) -> None:
    found = around(
        place, lambda replaced: chord([place.add.si(5, 5), replaced, place.add.si(6, 6)], place.echo.s())
    )

    assert found == {name: [10, expected, 12] for name, expected in EXPECTED.items()}


def test_as_the_body_of_a_chord(place: Place) -> None:
    header = [place.add.s(1, 1), place.add.s(2, 2)]

    assert around(place, lambda replaced: chord(header, replaced)) == EXPECTED
    assert around(place, lambda replaced: chord(header, replaced | place.echo.s())) == EXPECTED


def test_as_a_member_of_a_group(place: Place) -> None:
    found = around(place, lambda replaced: group(place.add.s(1, 1), replaced))

    assert found == {name: [2, expected] for name, expected in EXPECTED.items()}


def test_arguments_are_handed_on(place: Place) -> None:
    assert place.get(place.add.s(1, 1) | place.swap.s(to=place.add.s(5)) | place.add.s(1)) == 8


def test_the_replacement_has_the_id_and_the_place_in_the_canvas(place: Place) -> None:
    first = place.tell.s().freeze()
    chained = place.tell.s().set(task_id=first.id) | place.swap.si(to=place.tell.si())
    last = chained.apply_async()

    told = last.get(timeout=PATIENCE)
    assert told["id"] == last.id
    assert (told["root"], told["nesting"]) == (first.id, 1)


def test_each_replacement_is_one_level_deeper(place: Place) -> None:
    told = place.get(place.swap.s(to=place.swap.si(to=place.swap.si(to=place.tell.si()))))

    assert told["nesting"] == 3


def test_callbacks_are_called_once_with_the_replacement_result(place: Place) -> None:
    note = unique()
    replaced = place.swap.s(to=place.add.si(1, 2) | place.add.s(3))
    replaced.link(place.tell.s(keep=note))

    assert place.get(replaced) == 6
    (line,) = place.notes(note, 1)
    assert '"args": [6]' in line


def test_errbacks_are_called_when_the_replacement_fails(place: Place) -> None:
    names = [unique(), unique()]
    for name, to in zip(names, (place.fail.si(), place.add.si(1, 1) | place.fail.s()), strict=True):
        result = place.swap.s(to=to).on_error(place.new_errback.s(name)).apply_async()
        assert place.ended(result, "FAILURE")

    assert [place.notes(name, 1)[0].split()[2:] for name in names] == [["ValueError", "True"]] * 2


def test_a_replacement_has_callbacks_of_its_own(place: Place) -> None:
    note = unique()
    replacement = place.add.si(1, 2)
    replacement.link(place.note.s(note, "its own"))
    replaced = place.swap.s(to=replacement)
    replaced.link(place.note.s(note, "the first's"))

    assert place.get(replaced) == 3
    assert sorted(place.notes(note, 2)) == ["its own", "the first's"]


def test_nothing_takes_the_place_of_a_task_by_an_empty_chain(place: Place) -> None:
    result = place.swap.s(to=chain()).apply_async()

    assert place.ended(result, "FAILURE")


def test_a_replaced_part_adds_parts(place: Place) -> None:
    header = [place.swap.si(to=place.spread.si([1, 2], place.add.s(10))), place.add.s(1, 1)]

    assert sorted(place.get(chord(header, place.echo.s()))) == [0, 2, 11, 12]
