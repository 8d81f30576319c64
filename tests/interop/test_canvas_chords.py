"""Chords: a body that gets the results of its header, in the header's order, once all are there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import chain, chord, group
from tests.interop.canvas_site import PATIENCE, Place, unique

pytestmark = pytest.mark.timeout(60)


def two(place: Place, first: int = 1) -> list[Any]:
    """A header of two: the first gives 2 more than the second."""
    return [place.add.s(first, 2), place.add.s(first, 0)]


#: Chords, and what comes of them.
CHORDS: dict[str, tuple[Callable[[Place], Any], Any]] = {
    "five": (lambda p: chord([p.add.s(number, 1) for number in range(5)], p.echo.s()), [1, 2, 3, 4, 5]),
    "one": (lambda p: chord([p.add.s(1, 1)], p.echo.s()), [2]),
    "none": (lambda p: chord([], p.echo.s()), []),
    "a generator": (lambda p: chord((p.add.s(number, 1) for number in range(3)), p.echo.s()), [1, 2, 3]),
    "sixty": (lambda p: chord([p.echo.s(number) for number in range(60)], p.echo.s()), [*range(60)]),
    "the first is last": (
        lambda p: chord([p.add.s(1, 1).set(countdown=0.2), p.add.s(2, 2), p.add.s(3, 3)], p.echo.s()),
        [2, 4, 6],
    ),
    "body with arguments": (lambda p: chord(two(p), p.add.s([7], z=[8])), [3, 1, 7, 8]),
    "immutable body": (lambda p: chord(two(p), p.add.si(5, 5)), 10),
    "a group as header": (lambda p: chord(group(two(p)), p.total.s()), 4),
    "groups in the header": (lambda p: chord([group(two(p)), group(two(p, 5))], p.total.s()), 16),
    "chains in the header": (
        lambda p: chord([p.add.s(1, 1) | p.add.s(1), p.add.s(2, 2) | p.add.s(2)], p.echo.s()),
        [3, 6],
    ),
    "chains with groups in the header": (
        lambda p: chord([p.add.s(1, 1) | group(p.add.s(1), p.add.s(2)), p.add.s(1, 1)], p.echo.s()),
        [[3, 4], 2],
    ),
    "chords in the header": (
        lambda p: chord([chord(two(p), p.total.s()), chord(two(p, 5), p.echo.s())], p.echo.s()),
        [4, [7, 5]],
    ),
    "chords in chords in chords": (
        lambda p: chord(
            [chord([chord(two(p), p.total.s()), p.add.s(1, 1)], p.total.s()), p.echo.s(0)], p.total.s()
        ),
        6,
    ),
    "a chain as body": (lambda p: chord(two(p), p.total.s() | p.add.s(1) | p.add.s(1)), 6),
    "a group as body": (lambda p: chord(two(p), group(p.total.s(), p.echo.s())), [4, [3, 1]]),
    "a chord as body": (lambda p: chord(two(p), chord([p.total.s(), p.total.s()], p.echo.s())), [4, 4]),
    "a chain with a group as body": (
        lambda p: chord(two(p), p.total.s() | group(p.add.s(1), p.add.s(2)) | p.total.s()),
        11,
    ),
    "one that retries": (lambda p: chord([p.retry.s(1), p.add.s(1, 1)], p.echo.s()), [1, 2]),
    "a body that retries": (lambda p: chord(two(p), p.retry.s()), [3, 1]),
    "a part whose result is ignored": (
        lambda p: chord([p.forgotten.s(4), p.add.s(1, 1)], p.echo.s()),
        [4, 2],
    ),
    "chords in a group": (lambda p: group(chord(two(p), p.total.s()), chord(two(p, 2), p.total.s())), [4, 6]),
    "maps in the header": (
        lambda p: chord([p.echo.map([1, 2]), p.add.starmap([(1, 1)])], p.echo.s()),
        [[1, 2], [2]],
    ),
    "a chain of chords and groups": (
        lambda p: chain(
            p.add.s(1, 1),
            group(p.add.s(1), p.add.s(2)),
            chord([p.total.s(), p.total.s()], p.echo.s()),
            group(p.total.s(), p.total.s()),
            p.total.s(),
        ),
        28,
    ),
}


def test_the_result_of_the_body(place: Place) -> None:
    found = place.get_all({name: make for name, (make, _) in CHORDS.items()})

    assert found == {name: expected for name, (_, expected) in CHORDS.items()}


def test_a_chord_called_with_its_body(place: Place) -> None:
    assert chord(two(place))(place.total.s()).get(timeout=PATIENCE) == 4


def test_arguments_of_the_call_go_to_the_header(place: Place) -> None:
    assert place.get(chord([place.add.s(1), place.add.s(2)], place.total.s()), args=(10,)) == 23


def test_the_body_runs_once(place: Place) -> None:
    names = [unique() for _ in range(5)]
    for name in names:
        header = [place.add.s(number, 1) for number in range(10)]
        place.get(chord(header, place.note.s(name, "body")))

    assert [place.notes(name, 1) for name in names] == [["body"]] * 5


def test_parts_know_their_group_and_the_body_knows_its_root(place: Place) -> None:
    result = chord([place.tell.s(), place.tell.s()], place.tell.s()).apply_async()

    body = result.get(timeout=PATIENCE)
    (parts,) = body["args"]
    assert {part["group"] for part in parts} == {result.parent.id}
    assert [part["index"] for part in parts] == [0, 1]
    assert body["id"] == result.id
    assert body["root"] in {part["id"] for part in parts}
    assert body["parent"] in {part["id"] for part in parts}


def test_the_parent_is_the_header(place: Place) -> None:
    result = chord(two(place), place.total.s()).apply_async()

    assert result.get(timeout=PATIENCE) == 4
    assert result.parent.get(timeout=PATIENCE) == [3, 1]


def test_parts_are_added_while_the_header_runs(place: Place) -> None:
    header = [place.spread.s([1, 2, 3], place.add.s(10)), place.add.s(1, 1)]
    result = place.get(chord(header, place.echo.s()))

    assert sorted(result) == [0, 2, 11, 12, 13]


def test_canvas_is_added_while_the_header_runs(place: Place) -> None:
    added = chord(two(place), place.total.s())
    result = place.get(chord([place.spread.s([None], added)], place.echo.s()))

    assert sorted(result) == [0, 4]


def test_a_chord_is_called_by_a_task(place: Place) -> None:
    called = place.get(place.call.s(to=chord(two(place), place.total.s())))

    assert place.client.AsyncResult(called).get(timeout=PATIENCE) == 4


def test_a_chord_may_be_run_again(place: Place) -> None:
    again = chord(two(place), place.total.s())

    assert [place.get(again) for _ in range(3)] == [4, 4, 4]
