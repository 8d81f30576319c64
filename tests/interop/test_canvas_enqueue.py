"""``await celery.enqueue(canvas)``: the handle is on what the canvas ends with."""

from __future__ import annotations

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError
from tests.interop.canvas_site import PATIENCE, Place, unique

pytestmark = pytest.mark.timeout(60)


async def result_of(place: Place, canvas: object, *arguments: object) -> object:
    async with place.client as celery:
        handle = await celery.enqueue(canvas, arguments)
        return await handle.result(PATIENCE)


async def test_a_chain_gives_its_last_result(place: Place) -> None:
    assert await result_of(place, place.add.s(1, 2) | place.add.s(3) | place.add.s(4)) == 10


async def test_a_group_gives_all_results_in_order(place: Place) -> None:
    assert await result_of(place, group(place.add.s(number, 1) for number in range(5))) == [1, 2, 3, 4, 5]


async def test_a_chord_gives_the_result_of_its_body(place: Place) -> None:
    assert await result_of(place, chord([place.add.s(1, 1), place.add.s(2, 2)], place.echo.s())) == [2, 4]


async def test_nested_canvas(place: Place) -> None:
    canvas = chain(
        place.add.s(1, 1),
        group(place.add.s(1), place.add.s(2) | place.add.s(3)),
        chord([place.total.s(), place.total.s()], place.total.s()),
        group(place.add.s(1), place.add.s(2)),
    )

    assert await result_of(place, canvas) == [21, 22]


async def test_groups_in_a_group(place: Place) -> None:
    canvas = group(group(place.add.s(1, 1), place.add.s(2, 2)), place.add.s(3, 3) | place.add.s(1))

    assert await result_of(place, canvas) == [2, 4, 7]


async def test_maps_and_chunks(place: Place) -> None:
    assert await result_of(place, place.add.starmap([(1, 2), (3, 4)])) == [3, 7]
    assert await result_of(place, place.add.chunks([(1, 1), (2, 2), (3, 3)], 2).group()) == [[2, 4], [6]]


async def test_arguments_and_options_of_the_call(place: Place) -> None:
    assert await result_of(place, place.add.s(1) | place.add.s(2), 10) == 13
    assert await result_of(place, group(place.add.s(1), place.add.s(2)), 10) == [11, 12]


async def test_a_signature_with_callbacks(place: Place) -> None:
    name = unique()
    task = place.add.s(1, 1)
    task.link(place.note.s(name, "called"))

    assert await result_of(place, task) == 2
    assert place.notes(name, 1) == ["called"]


async def test_a_stamped_canvas(place: Place) -> None:
    canvas = place.add.s(1, 1) | place.tell.s()
    canvas.stamp(mark="x")

    told = await result_of(place, canvas)
    assert isinstance(told, dict)
    assert told["stamps"] == {"mark": "x"}


async def test_a_canvas_that_fails_raises(place: Place) -> None:
    canvases = [
        place.fail.s() | place.echo.s(),
        place.add.s(1, 1) | place.fail.s(),
        group(place.add.s(1, 1), place.fail.s()),
        chord([place.add.s(1, 1), place.fail.s()], place.echo.s()),
    ]

    for canvas in canvases:
        with pytest.raises((ValueError, ChordError), match="no"):
            await result_of(place, canvas)


async def test_all_parts_have_records_at_once(place: Place) -> None:
    canvas = chain(place.add.s(1, 1), place.add.s(1), place.add.s(1))
    async with place.client as celery:
        handle = await celery.enqueue(canvas)
        assert (await handle.record()).id == handle.id
        assert await handle.result(PATIENCE) == 4
        record = await handle.record()
        first = await celery.handle(record.root_id or "").record()

    assert (first.state, first.result) == ("SUCCESS", 2)
    assert record.parent_id not in (None, first.id)


async def test_canvas_from_many_at_once(place: Place) -> None:
    async with place.client as celery:
        handles = [await celery.enqueue(place.add.s(number, 1) | place.add.s(1)) for number in range(10)]
        assert [await handle.result(PATIENCE) for handle in handles] == [number + 2 for number in range(10)]
