"""Groups: tasks that run side by side, and their results in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import chain, group
from celery.result import result_from_tuple
from tests.interop.canvas_site import PATIENCE, Place, unique

pytestmark = pytest.mark.timeout(60)

#: Groups, and what comes of them.
GROUPS: dict[str, tuple[Callable[[Place], Any], Any]] = {
    "six": (lambda p: group(p.add.s(number, 1) for number in range(6)), [1, 2, 3, 4, 5, 6]),
    "one": (lambda p: group([p.add.s(1, 1)]), [2]),
    "none": (lambda p: group([]), []),
    "arguments": (lambda p: group(p.add.s(1, 1), p.add.s(2, 2)), [2, 4]),
    "group in a group": (
        lambda p: group(group(p.add.s(1, 1), p.add.s(2, 2)), p.add.s(3, 3), group(p.add.s(4, 4))),
        [2, 4, 6, 8],
    ),
    "chains": (lambda p: group(p.add.s(1, 1) | p.add.s(1), p.add.s(2, 2) | p.add.s(2)), [3, 6]),
    "chains with groups": (
        lambda p: group(
            p.add.s(1, 1) | group(p.add.s(1), p.add.s(2)) | p.total.s(),
            chain(group(p.add.s(1, 1), p.add.s(2, 2)), p.total.s(), p.add.s(1)),
        ),
        [7, 7],
    ),
    "one that retries": (lambda p: group(p.retry.s(1), p.add.s(1, 1)), [1, 2]),
    "one that is late": (lambda p: group(p.add.s(1, 1).set(countdown=0.2), p.add.s(2, 2)), [2, 4]),
}


def test_results_in_order(place: Place) -> None:
    found = place.get_all({name: make for name, (make, _) in GROUPS.items()})

    assert found == {name: expected for name, (_, expected) in GROUPS.items()}


def test_all_members_get_the_arguments_of_the_call(place: Place) -> None:
    assert group(place.add.s(1), place.add.s(2))(10).get(timeout=PATIENCE) == [11, 12]
    assert place.get(group(place.add.s(1), place.add.s(2, z=1)), args=(20,)) == [21, 23]


def test_a_fork_of_one_result(place: Place) -> None:
    assert place.get(place.add.s(1, 1) | group(place.add.s(n) for n in range(4)) | place.echo.s()) == [
        2,
        3,
        4,
        5,
    ]


def test_members_know_their_group(place: Place) -> None:
    result = group(place.tell.s(), place.tell.s()).apply_async()

    told = result.get(timeout=PATIENCE)
    assert [each["group"] for each in told] == [result.id] * 2
    assert [each["index"] for each in told] == [0, 1]
    assert [each["root"] for each in told] == [each["id"] for each in told]


def test_what_a_group_result_tells(place: Place) -> None:
    result = group(place.add.s(number, 1) for number in range(3)).apply_async()

    assert result.get(timeout=PATIENCE) == [1, 2, 3]
    assert result.join(timeout=PATIENCE) == [1, 2, 3]
    assert (result.ready(), result.successful(), result.failed(), result.waiting()) == (
        True,
        True,
        False,
        False,
    )
    assert result.completed_count() == len(result) == 3
    assert [each.result for each in result] == [each.result for each in result.children] == [1, 2, 3]


def test_a_member_that_fails(place: Place) -> None:
    result = group(place.add.s(1, 1), place.fail.s(), place.add.s(2, 2)).apply_async()

    with pytest.raises(ValueError, match="no"):
        result.get(timeout=PATIENCE)
    values = result.get(timeout=PATIENCE, propagate=False)
    assert (values[0], repr(values[1]), values[2]) == (2, "ValueError('no')", 4)
    assert (result.ready(), result.successful(), result.failed()) == (True, False, True)
    assert result.completed_count() == 2


def test_a_group_result_is_saved_and_restored(place: Place) -> None:
    result = group(place.add.s(number, 1) for number in range(3)).apply_async()
    result.save()

    restored = place.client.GroupResult.restore(result.id)
    assert restored == result
    assert restored.get(timeout=PATIENCE) == [1, 2, 3]
    restored.delete()
    assert place.client.GroupResult.restore(result.id) is None


def test_a_saved_group_keeps_its_parents(place: Place) -> None:
    result = (place.add.s(1, 1) | group(place.add.s(1), place.add.s(2))).apply_async()
    result.save()

    restored = place.client.GroupResult.restore(result.id)
    assert restored.get(timeout=PATIENCE) == [3, 4]
    assert restored.parent.get(timeout=PATIENCE) == 2


def test_results_are_forgotten(place: Place) -> None:
    result = group(place.add.s(1, 1), place.add.s(2, 2)).apply_async()
    assert result.get(timeout=PATIENCE) == [2, 4]
    ids = [each.id for each in result]

    result.forget()
    assert [place.client.AsyncResult(task_id).state for task_id in ids] == ["PENDING"] * 2


def test_a_group_is_called_by_a_task(place: Place) -> None:
    result = place.call_for_result.apply_async((), {"to": group(place.add.s(1, 1), place.add.s(2, 2))})

    called = result_from_tuple(result.get(timeout=PATIENCE), app=place.client)
    assert called.get(timeout=PATIENCE) == [2, 4]
    assert result.children == [called]


def test_a_large_group(place: Place) -> None:
    assert place.get(group(place.echo.s(number) for number in range(100))) == [*range(100)]


def test_a_callback_of_a_group_is_called_once(place: Place) -> None:
    name = unique()
    members = group(place.add.s(1, 1), place.add.s(2, 2))
    members.link(place.note.si(name, "called"))

    assert place.get(members) == [2, 4]
    assert place.notes(name, 1) == ["called"]
