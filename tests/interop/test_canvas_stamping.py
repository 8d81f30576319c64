"""Stamps: what a visitor writes on every task of a canvas, and who sees it.

https://docs.celeryq.dev/en/stable/userguide/canvas.html#stamping
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery import chain, chord, group
from celery.canvas import StampingVisitor
from tests.interop.canvas_site import PATIENCE, Place, unique

pytestmark = pytest.mark.timeout(60)


class Marks(StampingVisitor):  # type: ignore[misc]
    """Writes one stamp, the same everywhere."""

    def on_signature(self, _sig: Any, **_headers: Any) -> dict[str, Any]:
        return {"mark": "x"}


class Kinds(StampingVisitor):  # type: ignore[misc]
    """Writes down within what a task is."""

    def on_signature(self, _sig: Any, **_headers: Any) -> dict[str, Any]:
        return {"in_task": "yes"}

    def on_chain_start(self, _sig: Any, **_headers: Any) -> dict[str, Any]:
        return {"in_chain": "yes"}

    def on_group_start(self, _sig: Any, **_headers: Any) -> dict[str, Any]:
        return {"in_group": "yes"}

    def on_chord_header_start(self, sig: Any, **headers: Any) -> dict[str, Any]:
        super().on_chord_header_start(sig, **headers)
        return {"in_header": "yes"}

    def on_chord_body(self, _sig: Any, **_headers: Any) -> dict[str, Any]:
        return {"in_body": "yes"}

    def on_callback(self, _sig: Any, **_headers: Any) -> dict[str, Any]:
        return {"in_callback": "yes"}

    def on_errback(self, _sig: Any, **_headers: Any) -> dict[str, Any]:
        return {"in_errback": "yes"}


def told(place: Place, name: str, count: int = 1) -> list[dict[str, Any]]:
    """What tasks have said of themselves in notes."""
    return [json.loads(line) for line in place.notes(name, count)]


def test_a_task_sees_its_stamps(place: Place) -> None:
    task = place.tell.s()
    task.stamp(Marks())
    told = place.get(task)

    assert told["stamped"] == ["mark"]
    assert told["stamps"] == {"mark": "x"}


def test_stamps_as_keywords(place: Place) -> None:
    task = place.tell.s()
    task.stamp(colour="red", number=7)
    told = place.get(task)

    assert told["stamped"] == ["colour", "number"]
    assert told["stamps"] == {"colour": "red", "number": 7}


def test_without_stamps(place: Place) -> None:
    told = place.get(place.tell.s())

    assert (told["stamped"], told["stamps"] or {}) == ([], {})


def test_all_tasks_of_a_canvas_are_stamped(place: Place) -> None:
    name = unique()
    tell = place.tell.si(keep=name)
    canvas = chain(
        tell.clone(),
        group(tell.clone(), tell.clone() | tell.clone()),
        chord([tell.clone(), tell.clone()], tell.clone()),
        place.echo.si(1),
    )
    canvas.stamp(Marks())

    assert place.get(canvas) == 1
    assert [each["stamps"] for each in told(place, name, 7)] == [{"mark": "x"}] * 7


def test_a_visitor_is_told_where_a_task_is(place: Place) -> None:
    name = unique()
    canvas = chord([place.tell.si(keep=name), place.tell.si(keep=name)], place.tell.si(keep=name))
    canvas.stamp(Kinds())
    place.get(canvas)

    *header, body = [each["stamped"] for each in told(place, name, 3)]
    assert all({"in_header", "in_task"} <= set(stamped) for stamped in header)
    assert {"in_body", "in_task"} <= set(body)


def test_a_group_and_a_chain_stamp_their_tasks(place: Place) -> None:
    grouped = group(place.tell.s(), place.tell.s())
    grouped.stamp(Kinds())
    assert all({"in_group", "in_task"} <= set(each["stamped"]) for each in place.get(grouped))

    chained = place.add.s(1, 1) | place.tell.s()
    chained.stamp(Kinds())
    assert {"in_chain", "in_task"} <= set(place.get(chained)["stamped"])


def test_callbacks_and_errbacks_are_stamped(place: Place) -> None:
    names = [unique(), unique()]
    for name, task, link in zip(
        names, (place.add.s(1, 1), place.fail.s()), ("link", "link_error"), strict=True
    ):
        after = place.add.si(1, 1) | place.tell.si(keep=name)
        getattr(task, link)(after)
        task.stamp(Kinds())
        task.apply_async().get(timeout=PATIENCE, propagate=False)

    stamped = [told(place, name)[0]["stamped"] for name in names]
    assert "in_callback" in stamped[0]
    assert "in_errback" in stamped[1]


def test_stamps_given_twice_are_both_kept_where_asked_for(place: Place) -> None:
    task = place.tell.s()
    task.stamp(place="inner")
    task.stamp(append_stamps=True, place="outer")

    assert sorted(place.get(task)["stamps"]["place"]) == ["inner", "outer"]


def test_a_retry_keeps_its_stamps(place: Place) -> None:
    name = unique()
    canvas = place.retry.s(1)
    canvas.link(place.tell.s(keep=name))
    canvas.stamp(Marks())

    assert place.get(canvas) == 1
    assert told(place, name)[0]["stamps"] == {"mark": "x"}


def test_a_task_stamps_its_replacement(place: Place) -> None:
    canvas = place.stamping_swap.s(to=place.add.si(1, 1) | place.tell.si())

    assert place.get(canvas)["stamps"] == {"replaced": "yes"}


def test_stamps_are_in_the_message_but_not_in_the_arguments(place: Place) -> None:
    canvas = place.add.s(1) | place.tell.s()
    canvas.stamp(Marks())

    assert place.get(canvas, args=(1,))["args"] == [2]
