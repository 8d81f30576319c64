"""``map``, ``starmap`` and ``chunks``: many calls of one function in few messages."""

from __future__ import annotations

import pytest
from celery import chord, group
from tests.interop.canvas_site import PATIENCE, Place

pytestmark = pytest.mark.timeout(60)


def test_map_calls_once_for_each_argument(place: Place) -> None:
    assert place.get(place.echo.map([1, "two", [3]])) == [1, "two", [3]]


def test_starmap_unpacks_them(place: Place) -> None:
    assert place.get(place.add.starmap([(1, 2), (3, 4)])) == [3, 7]


def test_chunks_are_a_group_of_starmaps(place: Place) -> None:
    result = place.add.chunks(zip(range(7), range(7), strict=True), 3)()

    assert result.get(timeout=PATIENCE) == [[0, 2, 4], [6, 8, 10], [12]]
    assert len(result.results) == 3


def test_chunks_applied_and_chunks_as_a_group(place: Place) -> None:
    chunks = place.add.chunks([(1, 1), (2, 2), (3, 3)], 2)

    assert chunks.apply_async().get(timeout=PATIENCE) == [[2, 4], [6]]
    assert place.get(chunks.group()) == [[2, 4], [6]]


def test_chunks_can_be_spread_over_time(place: Place) -> None:
    chunks = place.add.chunks([(1, 1), (2, 2), (3, 3)], 1).group()
    chunks.skew(start=0, stop=0.2, step=0.1)

    assert [task.options["countdown"] for task in chunks.tasks] == [0, 0.1, 0.2]
    assert place.get(chunks) == [[2], [4], [6]]


def test_maps_are_parts_of_canvas(place: Place) -> None:
    assert place.get(place.echo.map([1, 2]) | place.total.s()) == 3
    assert place.get(group(place.echo.map([1, 2]), place.add.starmap([(1, 1)]))) == [[1, 2], [2]]
    assert place.get(chord(place.add.chunks([(1, 1), (2, 2)], 1).group(), place.echo.s())) == [[2], [4]]


def test_a_call_that_fails_fails_all(place: Place) -> None:
    result = place.fail.map([1, 2]).apply_async()

    assert place.ended(result, "FAILURE")
    assert repr(result.result) == "ValueError('no')"
