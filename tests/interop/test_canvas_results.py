"""The graph of results: ``children``, ``parent``, ``collect``, ``graph`` and what tasks call while they run."""

from __future__ import annotations

import pytest
from celery import chain, chord, group
from celery.result import AsyncResult, GroupResult, result_from_tuple
from tests.interop.canvas_site import PATIENCE, Place

pytestmark = pytest.mark.timeout(60)


def test_what_a_task_calls_are_its_children(place: Place) -> None:
    result = place.call.s(to=place.add.si(1, 2)).apply_async()
    called = result.get(timeout=PATIENCE)

    assert [child.id for child in result.children] == [called]
    assert result.children[0].get(timeout=PATIENCE) == 3


def test_what_is_called_knows_who_called_it(place: Place) -> None:
    result = place.call.s(to=place.call.si(to=place.tell.si())).apply_async()

    second = place.client.AsyncResult(result.get(timeout=PATIENCE))
    third = place.client.AsyncResult(second.get(timeout=PATIENCE))
    told = third.get(timeout=PATIENCE)
    assert (told["root"], told["parent"]) == (result.id, second.id)


def test_a_group_that_a_task_calls_is_its_child(place: Place) -> None:
    result = place.call_for_result.s(to=group(place.add.si(1, 1), place.add.si(2, 2))).apply_async()
    called = result_from_tuple(result.get(timeout=PATIENCE), app=place.client)

    assert isinstance(called, GroupResult)
    assert result.children == [called]
    assert result.children[0].get(timeout=PATIENCE) == [2, 4]


def test_of_a_chain_that_a_task_calls_the_first_is_its_child(place: Place) -> None:
    result = place.call_for_result.s(to=place.add.si(1, 1) | place.add.s(1)).apply_async()
    called = result_from_tuple(result.get(timeout=PATIENCE), app=place.client)

    assert isinstance(called, AsyncResult)
    assert called.get(timeout=PATIENCE) == 3
    assert result.children == [called.parent]
    assert called.parent.children == [called]


def test_of_a_chord_that_a_task_calls_the_header_is_its_child(place: Place) -> None:
    canvas = chord([place.add.si(1, 1), place.add.si(2, 2)], place.total.s())
    result = place.call_for_result.s(to=canvas).apply_async()
    called = result_from_tuple(result.get(timeout=PATIENCE), app=place.client)

    assert called.get(timeout=PATIENCE) == 6
    assert result.children == [called.parent]


def test_a_task_without_trail_has_no_children(place: Place) -> None:
    result = place.call_untrailed.s(to=place.add.si(1, 2)).apply_async()
    called = result.get(timeout=PATIENCE)

    assert not result.children
    assert place.client.AsyncResult(called).get(timeout=PATIENCE) == 3


def test_a_failed_task_keeps_its_children(place: Place) -> None:
    result = place.add.apply_async((1, 1), link=place.fail.s())

    assert result.get(timeout=PATIENCE) == 2
    assert place.ended(result.children[0], "FAILURE")


def test_a_chain_is_a_row_of_children(place: Place) -> None:
    last = (place.add.s(1, 1) | place.add.s(1) | place.add.s(1)).apply_async()
    assert last.get(timeout=PATIENCE) == 4

    first = last.parent.parent
    # A stock worker publishes what follows before it stores the result: the last may be there first.
    assert [each.get(timeout=PATIENCE) for each in (first, last.parent)] == [2, 3]
    assert first.children == [last.parent]
    assert last.parent.children == [last]
    assert first.get_leaf() == 4


def test_collect_follows_children(place: Place) -> None:
    first = place.add.s(1, 1)
    first.link(place.add.s(10) | place.add.s(100))
    result = first.apply_async()

    assert [value for _, value in result.collect(timeout=PATIENCE)] == [2, 12, 112]
    assert next(iter(result.iterdeps())) == (None, result)


def test_collect_through_a_group(place: Place) -> None:
    first = place.add.s(1, 1)
    first.link(group(place.add.s(10), place.add.s(20)))
    result = first.apply_async()

    values = [value for _, value in result.collect(timeout=PATIENCE)]
    assert values[0] == 2
    assert [12, 22] in values
    assert {12, 22} <= {value for value in values if isinstance(value, int)}


def test_the_graph_of_results(place: Place) -> None:
    first = place.add.s(1, 1)
    first.link(place.add.s(10) | place.add.s(100))
    result = first.apply_async()
    assert [value for _, value in result.collect(timeout=PATIENCE)] == [2, 12, 112]

    graph = result.graph
    assert len(graph) == 3
    (second,) = result.children
    (third,) = second.children
    assert [graph[each] for each in (result, second, third)] == [[second], [third], []]


def test_the_graph_of_the_end_begins_with_its_parents(place: Place) -> None:
    result = (place.add.s(1, 1) | place.add.s(1)).apply_async()
    assert (result.get(timeout=PATIENCE), result.parent.get(timeout=PATIENCE)) == (3, 2)

    names = {each.id for each in result.parent.graph}
    assert names == {result.id, result.parent.id}


def test_results_become_tuples_and_come_back(place: Place) -> None:
    result = chain(place.add.s(1, 1), group(place.add.s(1), place.add.s(2)), place.total.s()).apply_async()
    assert result.get(timeout=PATIENCE) == 7

    again = result_from_tuple(result.as_tuple(), app=place.client)
    assert again == result
    assert again.parent == result.parent
    assert again.parent.parent.get(timeout=PATIENCE) == 2


def test_a_task_gives_the_results_of_others(place: Place) -> None:
    result = place.call_for_result.s(to=place.add.si(1, 1) | place.add.s(1)).apply_async()

    called = result_from_tuple(result.get(timeout=PATIENCE), app=place.client)
    assert called.get(timeout=PATIENCE) == 3
    assert called.parent.get(timeout=PATIENCE) == 2


def test_what_a_result_tells_of_its_call(place: Place) -> None:
    result = (place.add.s(1, 1) | place.add.s(2, z=3)).apply_async()

    assert result.get(timeout=PATIENCE) == 7
    assert (result.name, result.args, result.kwargs) == (place.add.name, [2, 2], {"z": 3})
    assert (result.state, result.retries, result.traceback) == ("SUCCESS", 0, None)
    assert result.date_done is not None
