"""Values to text and message bodies to values: kombu's JSON, and kombu's other serializers where they are accepted.

kombu's JSON is JSON plus tagged objects (``{"__type__": "datetime", "__value__": …}``) for what JSON lacks. The text
written and the values read here are the ones of :mod:`kombu.utils.json`; only its per-call set-up is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, Any

from kombu import compression, serialization
from kombu.utils import json as kombu_json
from pydantic_core import from_json, to_jsonable_python

from celeriac.errors import ContentDisallowed, MalformedMessage
from celeriac.protocol.excerpts import excerpt, reason

if TYPE_CHECKING:
    from celeriac.protocol.message import Message

__all__ = [
    "JSON_TYPE",
    "Body",
    "decode_body",
    "decompress_body",
    "deserialize",
    "dumps",
    "dumps_list",
    "dumps_record",
    "loads",
    "text_json",
    "write_text",
]

#: The content type of JSON, which alone is accepted by default.
JSON_TYPE = "application/json"

#: A v2 task's body: positional arguments, keyword arguments and the embed (``callbacks``, ``errbacks``, ``chain``
#: and ``chord``).
Body = tuple[list[Any] | tuple[Any, ...], dict[str, Any], dict[str, Any]]

#: What :func:`dumps` writes for a value that JSON itself has no form for. Raises TypeError for what kombu has none for.
write_text: Callable[[Any], Any] = kombu_json.JSONEncoder().default

_encode = json.JSONEncoder(default=write_text).encode
_decode_plain = json.JSONDecoder().decode
_decode_tagged = json.JSONDecoder(object_hook=kombu_json.object_hook).decode


def dumps(value: Any) -> str:
    """JSON text of a value, as :func:`kombu.utils.json.dumps` writes it.

    Raises:
        TypeError: The value holds something that neither JSON nor kombu's tagged types can express.
        ValueError: The value contains itself.
    """
    return _encode(value)


_PLAIN: dict[type, Callable[[Any], str]] = {
    int: int.__repr__,
    str: encode_basestring_ascii,
    bool: lambda value: "true" if value else "false",
    type(None): lambda _: "null",
}


def text_json(text: str | None) -> str:
    """:func:`dumps` of a text or of nothing, without the set-up of an encoder."""
    return "null" if text is None else encode_basestring_ascii(text)


def dumps_list(values: Sequence[Any]) -> str:
    """:func:`dumps` of a list, in a tenth of the time where it holds nothing but numbers and strings."""
    try:
        return f"[{', '.join([_PLAIN[type(value)](value) for value in values])}]"
    except KeyError:
        return _encode(values)


#: Characters of what a record shows of a value that JSON cannot express.
_SHOWN = 1024


def dumps_record(value: Any) -> str:
    """JSON text of arguments for a record, whatever they hold: a model as its fields, and what JSON cannot express as
    its ``repr``, because another serializer may have carried what this one cannot."""
    try:
        return _encode_record(value)
    except (TypeError, ValueError, RecursionError):  # keys that are no text, and what contains itself
        if isinstance(value, (list, tuple)):
            return _encode([_shown(item) for item in value])
        if isinstance(value, Mapping):
            return _encode({str(name): _shown(item) for name, item in value.items()})
        return _encode(_shown(value))


def _shown(value: Any) -> str:
    try:
        return repr(value)[:_SHOWN]
    except Exception:  # noqa: BLE001 - a user's class may raise anything
        return excerpt(value)


def _write_record(value: Any) -> Any:
    try:
        return write_text(value)
    except TypeError:
        pass
    try:
        return to_jsonable_python(value, fallback=_shown)
    except Exception:  # noqa: BLE001 - a user's class may raise anything
        return _shown(value)


_encode_record = json.JSONEncoder(default=_write_record).encode


def loads(text: str | bytes | bytearray | memoryview, what: str = "The text") -> Any:
    """The value of a JSON text, as :func:`kombu.utils.json.loads` reads it.

    ``what`` names the text where it is wrong.

    Raises:
        MalformedMessage: The text is not UTF-8, not JSON, or tags a value that cannot be restored.
    """
    if type(text) is bytes and b"__type__" not in text and b"\\u00" not in text:
        # Rust's parser takes a third of the time. What it refuses, or reads in another way, has the second look below.
        try:
            return from_json(text)
        except ValueError:
            pass
    try:
        if not isinstance(text, str):
            text = bytes(text).decode("utf-8")
        # Plain JSON is most of what travels, and reading it without a hook takes half the time. A key written with
        # escapes may hide a tag from the first test, hence the second.
        if "__type__" in text or ("\\" in text and "\\u00" in text):
            return _decode_tagged(text)
        return _decode_plain(text)
    except MemoryError:  # says nothing about the text
        raise
    except Exception as exc:  # a tag's decoder may raise anything
        raise MalformedMessage(f"{what} is not JSON: {reason(exc)}.") from exc


def decode_body(message: Message, accept: Collection[str]) -> Body:
    """The arguments and the embed of a protocol v2 message.

    Args:
        message: The message; its ``compression`` header is honoured.
        accept: The content types, or kombu's names for them, that may be decoded (Celery's ``accept_content``).

    Raises:
        ContentDisallowed: The content type is not in ``accept``.
        MalformedMessage: The body cannot be decoded, or is not ``[args, kwargs, embed]``.
    """
    return check_body(deserialize(message, decompress_body(message), accept))


def decompress_body(message: Message) -> bytes:
    """The body without the compression that the ``compression`` header names.

    Raises:
        MalformedMessage: The compression is unknown, or the body is not in it.
    """
    method = message.headers.get("compression")
    if not method:
        return message.body
    try:
        return bytes(compression.decompress(message.body, method))
    except MemoryError:
        raise
    except Exception as exc:  # every method has exceptions of its own
        raise MalformedMessage(
            f"The body cannot be decompressed as {excerpt(method)}: {reason(exc)}."
        ) from exc


def deserialize(message: Message, body: bytes, accept: Collection[str]) -> Any:
    """The value of a decompressed body, by the message's content type. Raises like :func:`decode_body`."""
    content_type = message.content_type
    if content_type not in accept and serialization.registry.type_to_name.get(content_type) not in accept:
        raise ContentDisallowed(f"The content type {content_type!r} is not in accept_content.")
    if content_type == JSON_TYPE:
        return loads(body, "The body")
    try:
        return serialization.loads(body, content_type, message.content_encoding, accept={content_type})
    except MemoryError:
        raise
    except Exception as exc:  # every serializer has exceptions of its own
        raise MalformedMessage(f"The body is not {content_type}: {reason(exc)}.") from exc


def check_body(value: Any) -> Body:
    """``value`` as a v2 body. Raises MalformedMessage, naming the part, when it is not ``[args, kwargs, embed]``."""
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        raise MalformedMessage("The body is not [args, kwargs, embed].")
    args, kwargs, embed = value
    if not isinstance(args, (list, tuple)):
        raise MalformedMessage("The body's args are not a list.")
    if not isinstance(kwargs, dict) or not all(type(name) is str for name in kwargs):
        raise MalformedMessage("The body's kwargs are not a mapping of names to values.")
    if embed is None:  # which Celery takes for an empty one
        embed = {}
    if not isinstance(embed, dict):
        raise MalformedMessage("The body's embed is not a mapping.")
    return args, kwargs, embed
