"""The protocol under values and bytes that nobody thought of."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from kombu.utils import json as kombu_json

from celeriac.errors import MalformedMessage
from celeriac.protocol import codec, envelope
from celeriac.protocol.body import compressed, encode_body, json_body
from celeriac.protocol.builder import TaskMessageBuilder, properties_of
from celeriac.protocol.message import Message, TaskMessage

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
tagged = st.datetimes() | st.dates() | st.times() | st.uuids() | st.decimals(allow_nan=False) | st.binary()
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
values = st.recursive(
    scalars | tagged,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
PICKLE = "application/x-python-serialize"
identifiers = st.text(st.characters(codec="utf-8"), min_size=1, max_size=50)
counts = st.integers(0, 2**31 - 1)

# A header's place is taken now by what belongs there and now by anything at all.
HEADERS = [
    *(
        "lang",
        "task",
        "id",
        "shadow",
        "eta",
        "expires",
        "group",
        "group_index",
        "retries",
        "timelimit",
        "root_id",
    ),
    *(
        "parent_id",
        "argsrepr",
        "kwargsrepr",
        "origin",
        "ignore_result",
        "replaced_task_nesting",
        "stamped_headers",
    ),
    *("stamps", "compression"),
]
hostile_headers = st.fixed_dictionaries({}, optional=dict.fromkeys(HEADERS, json_values))
hostile_bodies = st.one_of(
    json_values,
    st.tuples(json_values, json_values, json_values),
    st.tuples(
        st.just([]),
        st.just({}),
        st.fixed_dictionaries(
            {}, optional=dict.fromkeys(("callbacks", "errbacks", "chain", "chord"), json_values)
        ),
    ),
    st.fixed_dictionaries({}, optional=dict.fromkeys([*HEADERS, "args", "kwargs", "callbacks"], json_values)),
)


@given(values)
def test_what_is_dumped_is_loaded(value: Any) -> None:
    assert codec.dumps(value) == kombu_json.dumps(value)
    assert codec.loads(codec.dumps(value)) == kombu_json.loads(kombu_json.dumps(value))


@given(st.text())
def test_loads_agrees_with_kombu_or_raises_malformed(text: str) -> None:
    try:
        expected = kombu_json.loads(text)
    except Exception:  # noqa: BLE001 - whatever kombu raises, ours is one
        try:
            codec.loads(text)
        except MalformedMessage:
            return
        raise AssertionError("kombu refuses it") from None
    assert repr(codec.loads(text)) == repr(expected)  # NaN is not equal to itself


@given(
    headers=st.dictionaries(st.text(), values, max_size=5),
    body=st.binary(),
    exchange=st.text(),
    routing_key=st.text(),
    priority=st.integers(0, 9),
    correlation_id=st.text(),
)
def test_an_envelope_opens_to_what_was_put_in(
    headers: Any, body: bytes, exchange: str, routing_key: str, priority: int, correlation_id: str
) -> None:
    message = Message(headers, {"correlation_id": correlation_id}, body)
    text = envelope.encode(
        message, exchange=exchange, routing_key=routing_key, delivery_tag="tag", priority=priority
    )
    opened = envelope.decode(text)
    assert opened.body == body
    assert opened.headers == kombu_json.loads(kombu_json.dumps(headers))
    assert opened.properties == {
        "correlation_id": correlation_id,
        "delivery_info": {"exchange": exchange, "routing_key": routing_key},
        "priority": priority,
        "body_encoding": "base64",
        "delivery_tag": "tag",
    }
    assert json.loads(text)["body"].isascii()
    assert envelope.decode(text.encode()) == opened


@given(
    task_id=identifiers,
    name=identifiers,
    args=st.lists(values, max_size=4),
    kwargs=st.dictionaries(st.text(), values, max_size=4),
    retries=counts,
    group=st.none() | identifiers,
    group_index=st.none() | counts,
    limits=st.tuples(st.none() | st.floats(0.001, 1e6), st.none() | st.integers(1, 10**6)),
    eta=st.none() | st.datetimes().map(lambda eta: eta.isoformat() + "+00:00"),
    priority=st.none() | st.integers(0, 9),
    ignore_result=st.none() | st.booleans(),
)
def test_a_built_message_reads_as_it_was_built(
    task_id: str, name: str, args: Any, kwargs: Any, limits: Any, eta: str | None, **options: Any
) -> None:
    priority = options.pop("priority")
    message = TaskMessageBuilder(name, origin="me").build(
        task_id,
        json_body(codec.dumps(args), codec.dumps(kwargs)),
        properties_of(task_id, priority=priority),
        {"timelimit": limits, "eta": eta, **options},
    )
    none = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    assert message.body == kombu_json.dumps([args, kwargs, none]).encode()

    text = envelope.encode(message, exchange="", routing_key="q", delivery_tag="tag")
    read = TaskMessage.from_message(envelope.decode(text))

    assert (read.id, read.task, read.root_id) == (task_id, name, task_id)
    assert [read.args, read.kwargs] == kombu_json.loads(kombu_json.dumps([args, kwargs]))
    assert (read.time_limit, read.soft_time_limit) == limits
    assert (read.eta and read.eta.isoformat()) == eta
    assert read.priority == (priority or 0)  # as in kombu, an envelope has one in any case
    assert read.group_id == options.pop("group")
    assert {name: getattr(read, name) for name in options} == options


#: What the binary serializers, and YAML's safe one, can all express.
portable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text("aż\U0001f422 '\"\\\n:-"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("aż"), inner, max_size=4),
    max_leaves=8,
)
EVERYTHING = frozenset(["application/json", "application/x-msgpack", "application/x-yaml", PICKLE])


@given(
    args=st.lists(portable, max_size=3),
    kwargs=st.dictionaries(st.text("aż", min_size=1), portable, max_size=3),
    serializer=st.sampled_from(["json", "msgpack", "yaml", "pickle"]),
    compression=st.none() | st.sampled_from(["gzip", "bzip2", "lzma"]),
)
def test_every_serializer_and_compression_brings_back_what_it_was_given(
    args: Any, kwargs: Any, serializer: str, compression: str | None
) -> None:
    body = encode_body(args, kwargs, {"chain": [{"task": "next"}]}, serializer)
    if compression is not None:
        body = compressed(body, compression)
    message = TaskMessageBuilder("task", origin="me").build("1", body, properties_of("1"), {})
    text = envelope.encode(message, exchange="", routing_key="q", delivery_tag="tag")
    read = TaskMessage.from_message(envelope.decode(text), EVERYTHING)
    assert [read.args, read.kwargs, read.chain] == [args, kwargs, [{"task": "next"}]]


@given(st.lists(values | st.builds(object) | st.sets(st.integers(), max_size=3), max_size=4))
def test_a_record_can_show_any_arguments(args: Any) -> None:
    shown = json.loads(codec.dumps_record(args))
    assert len(shown) == len(args)
    assert codec.dumps_record(args) == codec.dumps_record(args)
    assert [text for value, text in zip(args, shown, strict=True) if type(value) is object] == [
        repr(value) for value in args if type(value) is object
    ]


@settings(max_examples=200)
@given(st.binary() | json_values.map(json.dumps) | st.text())
def test_any_bytes_open_or_are_malformed(data: bytes | str) -> None:
    malformed = None
    try:
        assert isinstance(envelope.decode(data), Message)
    except MalformedMessage as exc:
        malformed = exc
    assert malformed is None or str(malformed).endswith(".")


@settings(max_examples=200)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "body": json_values,
            "headers": json_values | hostile_headers,
            "content-type": json_values | st.just("application/json"),
            "content-encoding": json_values,
            "properties": json_values
            | st.fixed_dictionaries(
                {},
                optional={
                    "body_encoding": json_values | st.sampled_from(["base64", "utf-8"]),
                    "delivery_info": json_values,
                    "correlation_id": json_values,
                    "reply_to": json_values,
                    "priority": json_values,
                },
            ),
        },
    )
)
def test_any_envelope_reads_as_a_task_or_is_malformed(content: Any) -> None:
    read(json.dumps(content))


@settings(max_examples=200)
@given(
    headers=hostile_headers,
    body=hostile_bodies,
    properties=st.dictionaries(st.text(), json_values, max_size=2),
)
def test_any_headers_and_body_read_as_a_task_or_are_malformed(
    headers: Any, body: Any, properties: Any
) -> None:
    good = TaskMessageBuilder("task", origin="me").build("1", json_body("[]", "{}"), properties_of("1"), {})
    for all_headers in (headers, {**good.headers, **headers}):
        message = Message(all_headers, {**good.properties, **properties}, json.dumps(body).encode())
        read(envelope.encode(message, exchange="", routing_key="q", delivery_tag="tag"))


def read(text: str) -> None:
    """Read a task and look at every part of it."""
    task, malformed = None, None
    try:
        task = TaskMessage.from_message(envelope.decode(text))
    except MalformedMessage as exc:
        malformed = exc
    if task is None:
        assert malformed is not None
        assert str(malformed).endswith(".")
        assert malformed.task_id is None or malformed.task_id.encode()
        return
    for name in dir(task):
        if not name.startswith("_"):
            getattr(task, name)
    assert task.id.encode()
    assert task.root_id.encode()
    # What was read can be sent again.
    envelope.encode(
        Message(task.headers, task.properties, task.body), exchange="", routing_key="q", delivery_tag="tag"
    )
