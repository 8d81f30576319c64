"""Reading a task message: what Celery's own request makes of it, protocol v1, and strangers' bytes."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery.worker.request import Request
from kombu.transport.virtual.base import Channel

from celeriac.errors import ContentDisallowed, MalformedMessage
from celeriac.protocol import envelope
from celeriac.protocol.body import json_body
from celeriac.protocol.builder import TaskMessageBuilder, properties_of
from celeriac.protocol.message import Message, TaskMessage

ID = "8b3ff1f0-5f0c-4f8c-9d9e-0b5f5a1d7a10"
EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


# Attributes of the same name and meaning in celery.worker.request.Request.
SHARED = [
    *(
        "id",
        "args",
        "kwargs",
        "root_id",
        "parent_id",
        "argsrepr",
        "kwargsrepr",
        "eta",
        "expires",
        "ignore_result",
    ),
    *("reply_to", "correlation_id", "replaced_task_nesting", "stamps", "group_index", "chord", "errbacks"),
]


def message(body: Any = None, properties: dict[str, Any] | None = None, **headers: Any) -> Message:
    """A good message, but for what is given."""
    good = TaskMessageBuilder("shop.task", origin="me").build(
        ID, json_body("[]", "{}"), properties_of(ID), {}
    )
    return Message(
        {**good.headers, **headers},
        {**good.properties, **(properties or {})},
        json.dumps([[], {}, EMBED] if body is None else body).encode(),
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"countdown": 10, "expires": 60},
        {"time_limit": 3, "soft_time_limit": 2, "retries": 1, "shadow": "s", "ignore_result": True},
        {
            "stamped_headers": ["a"],
            "a": [1],
            "group_id": "g",
            "group_index": 1,
            "root_id": "r",
            "parent_id": "p",
        },
        {"headers": {"custom": 1}, "priority": 5, "reply_to": "q"},
    ],
)
def test_fields_are_those_of_celery_s_request(stock: Any, options: dict[str, Any]) -> None:
    [raw] = stock.sent(lambda: stock.task.apply_async((1, "ż"), {"a": [None]}, **options))
    kombu_message = Channel.Message(raw, channel=Channel.__new__(Channel))
    request = Request(kombu_message, app=stock.app, task=stock.task)

    read = TaskMessage.from_message(envelope.decode(json.dumps(raw)))

    for name in SHARED:
        assert getattr(read, name) == getattr(request, name), name
    assert read.task == request.type
    assert read.group_id == request.group
    assert (read.shadow or read.task) == request.name
    assert list(read.stamped_headers) == request.stamped_headers
    assert [read.time_limit, read.soft_time_limit] == list(request.time_limits)
    assert read.retries == request._context.retries
    assert read.priority == request.delivery_info["priority"]
    assert read.headers == kombu_message.headers
    assert (read.body, read.content_type, read.content_encoding) == (
        kombu_message.body,
        kombu_message.content_type,
        kombu_message.content_encoding,
    )


def test_a_message_with_little_more_than_a_name_is_enough() -> None:
    bare = Message({"task": "t", "id": "1"}, {}, b"[[1], {}, null]")
    read = TaskMessage.from_message(bare)
    assert (read.id, read.task, read.args, read.kwargs, read.retries) == ("1", "t", [1], {}, 0)
    assert (read.root_id, read.eta, read.time_limit, read.ignore_result, read.callbacks) == (
        "1",
        None,
        None,
        None,
        None,
    )
    assert (read.stamps, read.stamped_headers, read.replaced_task_nesting) == ({}, (), 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2031-02-03T04:05:06.000789+00:00", datetime(2031, 2, 3, 4, 5, 6, 789, tzinfo=UTC)),
        ("2031-02-03T04:05:06+02:00", datetime(2031, 2, 3, 2, 5, 6, tzinfo=UTC)),
        ("2031-02-03T04:05:06Z", datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC)),
        ("2031-02-03T04:05:06", datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC)),
        ("2031-02-03T04:05:06.123456789Z", datetime(2031, 2, 3, 4, 5, 6, 123456, tzinfo=UTC)),
        ("20310203T040506", datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC)),
    ],
)
def test_times_are_utc(text: str, expected: datetime) -> None:
    read = TaskMessage.from_message(message(eta=text, expires=text))
    assert read.eta == read.expires == expected
    assert read.eta is not None
    assert read.eta.utcoffset() == timedelta(0)


def test_protocol_v1_is_understood(stock: Any) -> None:
    stock.app.amqp.create_task_message, saved = stock.app.amqp.as_task_v1, stock.app.amqp.create_task_message
    try:
        [raw] = stock.sent(
            lambda: stock.task.apply_async(
                (1,),
                {"a": 2},
                link=stock.task.s(3),
                time_limit=9,
                retries=1,
                eta=datetime(2031, 1, 1, tzinfo=UTC),
            )
        )
    finally:
        stock.app.amqp.create_task_message = saved
    assert "task" not in raw["headers"]

    read = TaskMessage.from_message(envelope.decode(json.dumps(raw)))

    assert read.id == raw["properties"]["correlation_id"] == read.correlation_id
    assert (read.task, read.args, read.kwargs, read.retries) == ("golden.task", [1], {"a": 2}, 1)
    assert read.eta == datetime(2031, 1, 1, tzinfo=UTC)
    assert (read.time_limit, read.soft_time_limit, read.chain, read.chord) == (9, None, None, None)
    assert read.callbacks is not None
    assert read.callbacks[0]["task"] == "golden.task"
    assert read.headers["task"] == "golden.task"


def test_the_hybrid_of_both_protocols_is_understood() -> None:
    body = {"task": "t", "id": "1", "args": [1], "kwargs": {}, "taskset": "g", "utc": True}
    read = TaskMessage.from_message(Message({"task": "t", "id": "2"}, {}, json.dumps(body).encode()))
    assert (read.id, read.args, read.group_id) == ("2", [1], "g")


WRONG_HEADERS: list[tuple[str, Any]] = [
    *[(name, value) for name in ("id", "task") for value in (None, "", 1, [], {"a": 1}, True, "\ud800")],
    *[
        (name, value)
        for name in ("root_id", "parent_id", "group", "shadow", "argsrepr", "kwargsrepr", "origin")
        for value in (1, [], {}, False, "\udfff")
    ],
    *[
        (name, value)
        for name in ("retries", "group_index", "replaced_task_nesting")
        for value in ("1", 1.0, True, -1, 2**31, [], {})
    ],
    *[
        (name, value)
        for name in ("eta", "expires")
        for value in ("", "soon", 1e9, [], {}, True, "2031-13-01T00:00:00", "0001-01-01T00:00:00+23:00")
    ],
    *[
        ("timelimit", value)
        for value in (
            "12",
            [1],
            [1, 2, 3],
            {"a": 1, "b": 2},
            ["1", None],
            [True, None],
            [-1, None],
            [None, float("nan")],
        )
    ],
    *[("timelimit", value) for value in ([float("inf"), None], [10**400, None], 5, [[], {}])],
    *[("ignore_result", value) for value in (0, 1, "false", [], 1.0)],
    *[("stamped_headers", value) for value in ("abc", [1], {"a": 1}, 1)],
    *[("stamps", value) for value in ("abc", [1], 1)],
]


@pytest.mark.parametrize(("name", "value"), WRONG_HEADERS, ids=lambda value: repr(value)[:40])
def test_a_header_of_the_wrong_type_is_named(name: str, value: Any) -> None:
    with pytest.raises(MalformedMessage, match=repr(name)) as caught:
        TaskMessage.from_message(message(**{name: value}))
    assert caught.value.task_id == (None if name == "id" else ID)
    assert caught.value.task == (None if name == "task" else "shop.task")


@pytest.mark.parametrize(
    ("name", "value"),
    [("correlation_id", 1), ("reply_to", []), ("priority", "5"), ("priority", -1), ("priority", 10**20)],
)
def test_a_property_of_the_wrong_type_is_named(name: str, value: Any) -> None:
    with pytest.raises(MalformedMessage, match=repr(name)):
        TaskMessage.from_message(message(properties={name: value}))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ([], r"\[args, kwargs, embed\]"),
        ([[], {}], r"\[args, kwargs, embed\]"),
        ([[], {}, {}, {}], r"\[args, kwargs, embed\]"),
        ("text", r"\[args, kwargs, embed\]"),
        (7, r"\[args, kwargs, embed\]"),
        (["a", {}, {}], "args"),
        ([{}, {}, {}], "args"),
        ([None, {}, {}], "args"),
        ([[], [], {}], "kwargs"),
        ([[], None, {}], "kwargs"),
        ([[], {}, []], "embed"),
        ([[], {}, "x"], "embed"),
        ([[], {}, {"callbacks": {}}], "callbacks"),
        ([[], {}, {"callbacks": [1]}], "callbacks"),
        ([[], {}, {"errbacks": "x"}], "errbacks"),
        ([[], {}, {"errbacks": [{}]}], "errbacks"),
        ([[], {}, {"chain": [None]}], "chain"),
        ([[], {}, {"chord": []}], "chord"),
        ([[], {}, {"chord": {"task": 1}}], "chord"),
        ({"args": 1}, "args"),
        ({"kwargs": [1]}, "kwargs"),
        ({"callbacks": 1}, "callbacks"),
    ],
)
def test_a_body_of_the_wrong_form_is_named(body: Any, says: str) -> None:
    with pytest.raises(MalformedMessage, match=says) as caught:
        TaskMessage.from_message(message(body))
    assert (caught.value.task_id, caught.value.task) == (ID, "shop.task")


def test_the_id_of_a_v1_message_is_known_when_it_fails() -> None:
    body = {"task": "t", "id": "1", "retries": "many"}
    with pytest.raises(MalformedMessage, match="'retries'") as caught:
        TaskMessage.from_message(Message({}, {}, json.dumps(body).encode()))
    assert (caught.value.task_id, caught.value.task) == ("1", "t")


def test_a_body_that_is_no_task_at_all() -> None:
    with pytest.raises(MalformedMessage, match="neither") as caught:
        TaskMessage.from_message(Message({}, {}, b'{"hello": "world"}'))
    assert (caught.value.task_id, caught.value.task) == (None, None)


def test_content_that_is_not_accepted_still_says_whose_it_is() -> None:
    pickled = Message(message().headers, {}, b"", "application/x-python-serialize", "binary")
    with pytest.raises(ContentDisallowed) as caught:
        TaskMessage.from_message(pickled)
    assert (caught.value.task_id, caught.value.task) == (ID, "shop.task")


def test_values_too_deep_or_too_long_to_show_do_not_hurt() -> None:
    deep: Any = []
    for _ in range(900):
        deep = [deep]
    with pytest.raises(MalformedMessage, match="'shadow'") as caught:
        TaskMessage.from_message(message(shadow=deep))
    assert len(str(caught.value)) < 300
    with pytest.raises(MalformedMessage, match="'shadow'") as caught:
        TaskMessage.from_message(message(shadow=["x" * 100_000] * 1000))
    assert len(str(caught.value)) < 300
