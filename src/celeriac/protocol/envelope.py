"""kombu's virtual-transport envelope: a whole message as one JSON text, as Redis and SQL queues hold it.

The same keys in the same order as ``kombu.Producer`` and ``kombu.transport.virtual.Channel`` write them with
``body_encoding`` base64, so that stock peers can read what is written here.
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping
from types import NoneType
from typing import Any

from celeriac.errors import MalformedMessage
from celeriac.protocol.codec import dumps, loads, text_json
from celeriac.protocol.excerpts import excerpt, reason
from celeriac.protocol.message import Message

__all__ = ["decode", "encode"]

# What the channel sets itself, after all the other properties and in this order.
_CHANNEL_PROPERTIES = frozenset(["delivery_info", "priority", "body_encoding", "delivery_tag"])

_USUAL_PROPERTIES = ("correlation_id", "reply_to", "delivery_mode")


def encode(message: Message, *, exchange: str, routing_key: str, delivery_tag: str, priority: int = 0) -> str:
    """The envelope of a message.

    Args:
        message: What to send. A ``priority`` among its properties counts when the argument is 0; its
            ``delivery_info`` keeps what the exchange and the routing key do not replace.
        exchange: The exchange, ``""`` for the default one.
        routing_key: The routing key, which is the queue's name on the default exchange.
        delivery_tag: Names the delivery; kombu uses a random UUID.
        priority: 0 to 9.

    Raises:
        TypeError: A header or property is nothing that kombu's JSON can express.
    """
    headers = message.headers_json or dumps(message.headers)
    properties = _properties(message.properties, exchange, routing_key, delivery_tag, priority)
    # Base64 needs no escapes, so a large body is spared the encoder.
    body = b2a_base64(message.body, newline=False).decode("ascii")
    return (
        f'{{"body": "{body}", "content-encoding": {text_json(message.content_encoding)}, '
        f'"content-type": {text_json(message.content_type)}, "headers": {headers}, "properties": {properties}}}'
    )


def _properties(
    given: Mapping[str, Any], exchange: str, routing_key: str, delivery_tag: str, priority: int
) -> str:
    if tuple(given) == _USUAL_PROPERTIES:
        correlation_id, reply_to, delivery_mode = given.values()
        if type(correlation_id) is type(reply_to) is str and type(delivery_mode) is int:
            # What nearly every message has, in a third of the encoder's time.
            return (
                f'{{"correlation_id": {text_json(correlation_id)}, "reply_to": {text_json(reply_to)}, '
                f'"delivery_mode": {delivery_mode}, "delivery_info": {{"exchange": {text_json(exchange)}, '
                f'"routing_key": {text_json(routing_key)}}}, "priority": {priority}, '
                f'"body_encoding": "base64", "delivery_tag": {text_json(delivery_tag)}}}'
            )
    delivery_info = {"exchange": exchange, "routing_key": routing_key}
    if not _CHANNEL_PROPERTIES.isdisjoint(given):
        delivery_info = {**(given.get("delivery_info") or {}), **delivery_info}
        priority = priority or given.get("priority") or 0
        given = {name: value for name, value in given.items() if name not in _CHANNEL_PROPERTIES}
    return dumps(
        {
            **given,
            "delivery_info": delivery_info,
            "priority": priority,
            "body_encoding": "base64",
            "delivery_tag": delivery_tag,
        }
    )


def decode(envelope: bytes | str) -> Message:
    """The message in an envelope, whoever wrote it.

    Its properties are all of the envelope's, the channel's own included. A body without ``body_encoding`` is text.

    Raises:
        MalformedMessage: The envelope is not JSON, or one of its parts is missing or of the wrong type.
    """
    value = loads(envelope, "The envelope")
    if type(value) is not dict:
        raise MalformedMessage("The envelope is not a JSON object.")
    properties = value.get("properties")
    if type(properties) is not dict:
        raise MalformedMessage("The envelope's properties are not an object.")
    if not isinstance(properties.get("delivery_info"), (dict, NoneType)):
        raise MalformedMessage("The envelope's delivery_info is not an object.")
    headers = value.get("headers")
    if headers is None:
        headers = {}
    elif type(headers) is not dict:
        raise MalformedMessage("The envelope's headers are not an object.")
    return Message(
        headers=headers,
        properties=properties,
        body=_decode_body(value.get("body"), properties.get("body_encoding")),
        # Without a type kombu takes a body for opaque bytes.
        content_type=_text(value, "content-type") or "application/data",
        content_encoding=_text(value, "content-encoding") or "utf-8",
    )


def _decode_body(body: Any, encoding: Any) -> bytes:
    if body is None:
        return b""
    if type(body) is not str:
        raise MalformedMessage("The envelope's body is not a string.")
    try:
        if encoding == "base64":
            return a2b_base64(body, strict_mode=True)
        if not encoding or (type(encoding) is str and encoding.lower() == "utf-8"):
            return body.encode("utf-8")
    except ValueError as exc:
        raise MalformedMessage(f"The envelope's body is not {encoding or 'utf-8'}: {reason(exc)}.") from exc
    raise MalformedMessage(f"The envelope's body_encoding is unknown: {excerpt(encoding)}.")


def _text(value: dict[str, Any], name: str) -> str | None:
    text = value.get(name)
    if text is not None and type(text) is not str:
        raise MalformedMessage(f"The envelope's {name} is not a string.")
    return text
