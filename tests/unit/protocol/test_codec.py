"""The codec, against kombu's own serializers."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from kombu import compression, serialization
from kombu.utils import json as kombu_json

from celeriac.errors import ContentDisallowed, MalformedMessage
from celeriac.protocol import codec
from celeriac.protocol.message import Message, TaskMessage

JSON = frozenset(["json"])
BODY: list[Any] = [[1, "ż"], {"a": None}, {"callbacks": None}]


class Reduced:
    def __json__(self) -> dict[str, int]:
        return {"a": 1}


@pytest.mark.parametrize(
    "value",
    [
        None,
        [1, 2.5, True, "ż\U0001f422\ud800\x00"],
        {"a": {1: 2, None: 3, False: 4, 1.5: 5}},
        (1, (2,)),
        float("nan"),
        datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
        [date(2024, 1, 2), time(1, 2), UUID(int=1), Decimal("1.10"), b"text", b"\xff"],
        {"a": Reduced()},
    ],
    ids=lambda value: repr(value)[:30],
)
def test_text_and_values_are_kombu_s(value: Any) -> None:
    text = codec.dumps(value)
    assert text == kombu_json.dumps(value)
    if value == value:  # not NaN
        assert codec.loads(text) == kombu_json.loads(text)
        assert codec.loads(text.encode()) == codec.loads(memoryview(text.encode())) == kombu_json.loads(text)


def test_a_tag_that_is_written_with_escapes_is_a_tag() -> None:
    text = '{"\\u005f_type__": "date", "__v\\u0061lue__": "2024-01-02"}'
    assert codec.loads(text) == kombu_json.loads(text) == date(2024, 1, 2)


def test_dumps_refuses_what_kombu_refuses() -> None:
    around: list[Any] = []
    around.append(around)
    for value, error in (
        (object(), TypeError),
        ({1, 2}, TypeError),
        ({(1, 2): 3}, TypeError),
        (around, ValueError),
    ):
        with pytest.raises(error):
            kombu_json.dumps(value)
        with pytest.raises(error):
            codec.dumps(value)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        "{",
        "nul",
        "[" * 100_000,
        "9" * 10_000,
        '{"__type__": "uuid", "__value__": 1}',
        '{"__type__": "decimal", "__value__": "x"}',
        '{"__type__": "unheard of", "__value__": 1}',
        '{"__type__": {}, "__value__": 1}',
        '{"__type__": "nested", "__value__": ' + "[" * 500 + "]" * 500 + "}",
    ],
    ids=lambda text: repr(text)[:30],
)
def test_loads_says_what_is_wrong_in_one_short_sentence(text: bytes | str) -> None:
    with pytest.raises(MalformedMessage, match=r"^The text is not JSON: ") as caught:
        codec.loads(text)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def message(
    body: bytes, content_type: str = "application/json", encoding: str = "utf-8", **headers: Any
) -> Message:
    return Message({"id": "1", "task": "t", **headers}, {}, body, content_type, encoding)


@pytest.mark.parametrize("accept", [["json"], ["application/json"], ["pickle", "json"]])
def test_json_is_accepted_by_either_name(accept: list[str]) -> None:
    assert codec.decode_body(message(json.dumps(BODY).encode()), frozenset(accept)) == tuple(BODY)


@pytest.fixture
def backwards() -> Iterator[str]:
    """A serializer of one's own, which is JSON written backwards."""
    serialization.register(
        "backwards",
        lambda value: json.dumps(value)[::-1],
        lambda data: json.loads(bytes(data).decode()[::-1]),
        content_type="application/x-backwards",
    )
    yield "backwards"
    serialization.unregister("backwards")


@pytest.mark.parametrize("name", ["pickle", "backwards"])
@pytest.mark.usefixtures("backwards")
def test_other_serializers_are_used_only_when_they_are_accepted(name: str) -> None:
    content_type, encoding, body = serialization.dumps(BODY, serializer=name)
    sent = message(body.encode() if isinstance(body, str) else body, content_type, encoding)
    for accept in ([name], [content_type, "json"]):
        assert codec.decode_body(sent, frozenset(accept)) == tuple(BODY)
    with pytest.raises(ContentDisallowed, match=content_type):
        codec.decode_body(sent, JSON)


def test_pickles_are_not_even_opened_unless_they_are_accepted() -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return pytest.fail, ("the pickle was opened",)

    with pytest.raises(ContentDisallowed):
        codec.decode_body(message(pickle.dumps(Bomb()), "application/x-python-serialize", "binary"), JSON)


@pytest.mark.parametrize(
    ("content_type", "accept"),
    [
        ("text/plain", "json"),
        ("application/data", "json"),
        ("", "json"),
        ("application/x-unheard-of", "json"),
    ],
)
def test_other_content_is_disallowed(content_type: str, accept: str) -> None:
    with pytest.raises(ContentDisallowed):
        codec.decode_body(message(b"[[], {}, {}]", content_type), frozenset([accept]))


def test_accepted_content_that_cannot_be_read_is_malformed() -> None:
    for name, body in (
        ("application/x-python-serialize", b"junk"),
        ("application/x-unheard-of", b"\xff\xfe"),
    ):
        with pytest.raises(MalformedMessage):
            codec.decode_body(message(body, name), frozenset([name]))


@pytest.mark.parametrize("method", ["zlib", "gzip", "bzip2", "application/x-gzip", "lzma"])
def test_compressed_bodies_are_read_and_handed_on_decompressed(method: str) -> None:
    body, content_type = compression.compress(json.dumps(BODY), method)
    for header in (method, content_type):
        read = TaskMessage.from_message(message(body, compression=header))
        assert [read.args, read.kwargs, read.embed] == BODY
        assert read.body == json.dumps(BODY).encode()


@pytest.mark.parametrize("header", ["unheard of", 1, ["zlib"], {"a": 1}, "zlib"])
def test_a_body_that_cannot_be_decompressed_is_malformed(header: Any) -> None:
    with pytest.raises(MalformedMessage, match="decompressed"):
        codec.decode_body(message(json.dumps(BODY).encode(), compression=header), JSON)
