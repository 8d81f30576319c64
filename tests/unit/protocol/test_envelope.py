"""The virtual envelope, against kombu's own producer and channel."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import kombu
import pytest
from kombu.transport import memory
from kombu.utils import json as kombu_json

from celeriac.errors import MalformedMessage
from celeriac.protocol import envelope
from celeriac.protocol.message import Message


@pytest.fixture
def channel() -> Iterator[Any]:
    with kombu.Connection("memory://") as connection:
        channel = connection.channel()
        yield channel
        channel.close()


def publish(channel: Any, body: bytes, queue: str, **options: Any) -> dict[str, Any]:
    """What kombu puts into ``queue``: the raw dict, before any transport encodes it."""
    kombu.Producer(channel).publish(body, exchange="", routing_key=queue, **options)
    raw: dict[str, Any] = memory.Channel.queues[queue].get(block=False)
    return raw


def encode(message: Message, **options: Any) -> str:
    return envelope.encode(message, exchange="", routing_key="q", **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"priority": 7},
        {"headers": {"id": "1", "task": "t", "unicode": "żółw", "nested": {"a": [1, None, 2.5, True]}}},
        {"correlation_id": "1", "reply_to": "r", "expiration": 12.5, "delivery_mode": 1},
        {"content_type": "application/json", "content_encoding": "utf-8"},
    ],
    ids=["bare", "priority", "headers", "properties", "types"],
)
@pytest.mark.parametrize("body", [b"", b"[[1], {}, {}]", bytes(range(256))], ids=["empty", "text", "binary"])
def test_encode_writes_what_kombu_writes(channel: Any, body: bytes, options: dict[str, Any]) -> None:
    raw = publish(channel, body, "q", **options)
    stock = channel.Message(raw, channel=channel)
    properties = {
        name: raw["properties"][name]
        for name in raw["properties"]
        if name not in ("delivery_info", "priority", "body_encoding", "delivery_tag")
    }
    message = Message(stock.headers, properties, body, stock.content_type, stock.content_encoding)

    written = encode(message, delivery_tag=stock.delivery_tag, priority=options.get("priority", 0))

    assert written == kombu_json.dumps(raw)


def test_decode_reads_what_kombu_reads(channel: Any) -> None:
    raw = publish(channel, b"[[1], {}, {}]", "q", headers={"id": "1"}, correlation_id="1", priority=3)
    stock = channel.Message(raw, channel=channel)

    message = envelope.decode(kombu_json.dumps(raw).encode())

    assert message.body == stock.body
    assert message.headers == stock.headers
    assert message.properties == stock.properties
    assert (message.content_type, message.content_encoding) == (stock.content_type, stock.content_encoding)


def test_an_encoded_message_comes_back_and_can_be_sent_again() -> None:
    text = encode(Message({"id": "1"}, {"correlation_id": "1", "priority": 4}, b"\x00\xff"), delivery_tag="a")
    message = envelope.decode(text)
    assert message.body == b"\x00\xff"
    assert message.properties["priority"] == 4
    assert encode(message, delivery_tag="a") == text
    assert envelope.decode(encode(message, delivery_tag="b", priority=9)).properties["priority"] == 9


def test_sending_again_keeps_what_the_delivery_info_says_beside_the_route() -> None:
    message = Message({}, {"delivery_info": {"exchange": "old", "redelivered": True}}, b"")
    sent = envelope.decode(encode(message, delivery_tag="a"))
    assert sent.properties["delivery_info"] == {"exchange": "", "redelivered": True, "routing_key": "q"}


@pytest.mark.parametrize(("encoding", "body"), [(None, "zażółć"), ("utf-8", "zażółć"), ("UTF-8", "zażółć")])
def test_decode_takes_text_bodies(encoding: str | None, body: str) -> None:
    text = json.dumps({"body": body, "properties": {"body_encoding": encoding}, "headers": None})
    message = envelope.decode(text)
    assert message.body == body.encode()
    assert message.headers == {}
    assert (message.content_type, message.content_encoding) == ("application/data", "utf-8")


def test_decode_restores_tagged_values_like_the_redis_transport() -> None:
    text = kombu_json.dumps({"body": "", "properties": {}, "headers": {"blob": b"\x00\xff"}})
    assert envelope.decode(text).headers == {"blob": b"\x00\xff"}


GOOD = {"body": "", "properties": {"body_encoding": "base64"}, "headers": {}}


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"1" * 5_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"__type__": "uuid", "__value__": 1}', "not JSON"),
        (b'{"__type__": [], "__value__": 1}', "not JSON"),
        ({"properties": None}, "properties"),
        ({"properties": "x"}, "properties"),
        ({"properties": {"delivery_info": "x"}}, "delivery_info"),
        ({"headers": []}, "headers"),
        ({"body": 1}, "body is not a string"),
        ({"body": "a"}, "not base64"),
        ({"body": "!!!!"}, "not base64"),
        ({"body": "żółw"}, "not base64"),
        ({"body": "\ud800", "properties": {}}, "not utf-8"),
        ({"properties": {"body_encoding": "rot13"}}, "rot13"),
        ({"properties": {"body_encoding": 7}}, "body_encoding"),
        ({"content-type": 1}, "content-type"),
        ({"content-encoding": {}}, "content-encoding"),
    ],
)
def test_decode_says_what_is_wrong_in_one_sentence(broken: bytes | dict[str, Any], says: str) -> None:
    text = broken if isinstance(broken, bytes) else json.dumps({**GOOD, **broken})
    with pytest.raises(MalformedMessage, match=says) as caught:
        envelope.decode(text)
    assert str(caught.value).endswith(".")
