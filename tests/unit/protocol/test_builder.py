"""The messages that are built here, against the ones that stock Celery publishes for the same call."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from celery import chain, chord, group
from celery.utils.saferepr import saferepr
from kombu.utils import json as kombu_json

from celeriac.protocol import codec, envelope
from celeriac.protocol.body import json_body
from celeriac.protocol.builder import TaskMessageBuilder, properties_of
from celeriac.protocol.message import Message, TaskMessage

ETA = datetime(2031, 2, 3, 4, 5, 6, 789, tzinfo=UTC)
VALUES: list[Any] = [
    None,
    True,
    -1.5e-7,
    10**30,
    float("inf"),
    "żółw \U0001f422 \x00 \"\\'",
    [[], {}, [{"a": [1, {"b": None}]}]],
    (1, 2),
    datetime(2024, 1, 2, 3, 4, 5, 6),  # noqa: DTZ001
    datetime(2024, 1, 2, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    date(2024, 1, 2),
    time(3, 4, 5),
    UUID(int=7),
    Decimal("1.10"),
    b"text",
    b"\x00\xff",
]


def as_envelope(message: Message, raw: dict[str, Any]) -> str:
    """Our envelope of ``message``, sent the way that ``raw`` was."""
    properties = raw["properties"]
    return envelope.encode(
        message,
        exchange=properties["delivery_info"]["exchange"],
        routing_key=properties["delivery_info"]["routing_key"],
        delivery_tag=properties["delivery_tag"],
    )


def assert_same(message: Message, raw: dict[str, Any]) -> None:
    ours, theirs = as_envelope(message, raw), kombu_json.dumps(raw)
    assert json.loads(ours) == json.loads(theirs)  # shows the difference
    assert ours == theirs
    assert envelope.decode(ours).body == envelope.decode(theirs).body


#: What is a property of the message, what is in its body; the rest are headers.
PROPERTIES = {"reply_to", "delivery_mode", "expiration", "priority", "others"}
EMBED = ("callbacks", "errbacks", "chain", "chord")


def assemble(name: str, origin: str, task_id: str, args: Any, kwargs: Any, options: Any) -> Message:
    properties = {key: options.pop(key) for key in list(options) if key in PROPERTIES}
    embed = {key: options.pop(key, None) for key in EMBED}
    more = options.pop("headers", None)
    return TaskMessageBuilder(name, origin=origin).build(
        task_id,
        json_body(codec.dumps(args), codec.dumps(kwargs), embed),
        properties_of(task_id, **properties),
        options,
        more,
    )


def build(stock: Any, raw: dict[str, Any], args: Any = (), kwargs: Any = None, **options: Any) -> Message:
    kwargs = kwargs or {}
    defaults = {
        "argsrepr": saferepr(args),
        "kwargsrepr": saferepr(kwargs),
        "ignore_result": False,
        "reply_to": stock.app.thread_oid,
    }
    return assemble("golden.task", stock.origin, raw["headers"]["id"], args, kwargs, {**defaults, **options})


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_arguments(stock: Any, value: Any) -> None:
    args, kwargs = (value, [value]), {"key": value, "nested": {"key": value}}
    [raw] = stock.sent(lambda: stock.task.apply_async(args, kwargs))
    assert_same(build(stock, raw, args, kwargs), raw)


# What apply_async is given, and what the builder is given for the same message where the two differ.
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "none": ({}, {}),
    "eta": ({"eta": ETA}, {"eta": ETA.isoformat()}),
    "priority": ({"priority": 9}, {"priority": 9}),
    "priority zero": ({"priority": 0}, {"priority": 0}),
    "headers": ({"headers": {"x": {"y": ["ż"]}, "task": "z"}}, {"headers": {"x": {"y": ["ż"]}, "task": "z"}}),
    "time limits": ({"time_limit": 9, "soft_time_limit": 2.5}, {"timelimit": [9, 2.5]}),
    "soft limit": ({"soft_time_limit": 3}, {"timelimit": [None, 3]}),
    "shadow": ({"shadow": "other"}, {"shadow": "other"}),
    "ignore_result": ({"ignore_result": True}, {"ignore_result": True}),
    "retries": ({"retries": 2}, {"retries": 2}),
    "reply_to": ({"reply_to": "here"}, {"reply_to": "here"}),
    "tree": ({"root_id": "root", "parent_id": "parent"}, {"root_id": "root", "parent_id": "parent"}),
    "group": ({"group_id": "g", "group_index": 3}, {"group": "g", "group_index": 3}),
    "stamps": (
        {"stamped_headers": ["customer"], "customer": [1, "ż"]},
        {"stamped_headers": ["customer"], "stamps": {"customer": [1, "ż"]}},
    ),
    "delivery mode": ({"delivery_mode": 1}, {"delivery_mode": 1}),
    "properties": ({"user_id": "u", "app_id": "a"}, {"others": {"user_id": "u", "app_id": "a"}}),
    "replaced": ({"replaced_task_nesting": 2}, {"replaced_task_nesting": 2}),
}


@pytest.mark.parametrize(("given", "built"), OPTIONS.values(), ids=OPTIONS)
def test_options(stock: Any, given: dict[str, Any], built: dict[str, Any]) -> None:
    [raw] = stock.sent(lambda: stock.task.apply_async((1, "ż"), {"a": 2}, **given))
    assert_same(build(stock, raw, (1, "ż"), {"a": 2}, **built), raw)


def test_a_call_by_name_leaves_ignoring_the_result_to_the_task(stock: Any) -> None:
    [raw] = stock.sent(lambda: stock.app.send_task("elsewhere", (1,)))
    options = {"argsrepr": "(1,)", "kwargsrepr": "{}", "reply_to": stock.app.thread_oid}
    assert_same(assemble("elsewhere", stock.origin, raw["headers"]["id"], [1], {}, options), raw)


@pytest.mark.parametrize("given", [{"countdown": 7}, {"expires": 60.5}, {"countdown": 1, "expires": ETA}])
def test_times_that_celery_computes(stock: Any, given: dict[str, Any]) -> None:
    [raw] = stock.sent(lambda: stock.task.apply_async(**given))
    expiration = raw["properties"].get("expiration")
    message = build(
        stock,
        raw,
        eta=raw["headers"]["eta"],
        expires=raw["headers"]["expires"],
        expiration=expiration and int(expiration) / 1000,
    )
    assert_same(message, raw)


def test_successors(stock: Any) -> None:
    task = stock.task
    link = [task.s(1, when=ETA), task.si(2).set(queue="other", countdown=3)]
    errors = [task.s()]
    rest = [task.s(5), group([task.s(6), task.s(7)])]
    [raw] = stock.sent(
        lambda: task.apply_async(link=link, link_error=errors, chain=rest, chord=task.s(8)),
    )
    message = build(stock, raw, callbacks=link, errbacks=errors, chain=rest, chord=task.s(8))
    assert_same(message, raw)


@pytest.mark.parametrize(
    "canvas",
    [
        lambda task: chain(task.s(1), task.s(2), task.s(3)),
        lambda task: group(task.s(1), task.s(2).set(priority=4)),
        lambda task: chord([task.s(1), task.s(2)], task.s(3)),
        lambda task: chain(task.s(1), group(task.s(2), task.s(3)), task.s(4).on_error(task.s())),
        lambda task: group(task.s(1), chain(task.s(2), task.s(3))),
    ],
    ids=["chain", "group", "chord", "chain of chords", "group of chains"],
)
def test_what_the_canvas_sends_survives_reading_and_building_again(stock: Any, canvas: Any) -> None:
    raws = stock.sent(lambda: canvas(stock.task).apply_async())
    assert raws
    for raw in raws:
        read = TaskMessage.from_message(envelope.decode(kombu_json.dumps(raw)))
        assert_same(rebuild(read), raw)


CARRIED = (
    *("argsrepr", "kwargsrepr", "retries", "root_id", "parent_id", "group_index", "shadow", "ignore_result"),
    *("replaced_task_nesting", "stamps", "reply_to", "priority", *EMBED),
)


def rebuild(read: TaskMessage) -> Message:
    """The message that reading gave, built anew from the parts."""
    options = {name: getattr(read, name) for name in CARRIED} | {
        "group": read.group_id,
        "timelimit": [read.time_limit, read.soft_time_limit],
        "eta": read.eta and read.eta.isoformat(),
        "expires": read.expires and read.expires.isoformat(),
        "stamped_headers": read.headers["stamped_headers"],
    }
    return assemble(read.task, read.origin or "", read.id, read.args, read.kwargs, options)
