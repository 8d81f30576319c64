"""A task's body as bytes: JSON here and now, and everything else by kombu's registries.

What Celery documents under ``task_serializer`` and ``task_compression``:
https://docs.celeryq.dev/en/stable/userguide/calling.html#serializers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kombu import compression as compressors
from kombu import serialization

from celeriac.errors import ConfigurationError
from celeriac.protocol import codec

__all__ = ["EncodedBody", "compressed", "encode_body", "json_body"]


class EncodedBody(NamedTuple):
    """A body as it travels, and what its receiver needs to know to read it.

    ``compression`` is the content type of the compression, as the header of that name has it.
    """

    content: bytes
    content_type: str = codec.JSON_TYPE
    content_encoding: str = "utf-8"
    compression: str | None = None


_NO_EMBED = '{"callbacks": null, "errbacks": null, "chain": null, "chord": null}'


def json_body(args_json: str, kwargs_json: str, embed: Mapping[str, Any] | None = None) -> EncodedBody:
    """What ``json.dumps([args, kwargs, embed])`` gives, without encoding the arguments a second time.

    ``embed`` is what follows the task: ``callbacks``, ``errbacks``, ``chain`` and ``chord``; ``None`` is nothing.
    Raises TypeError for what kombu's JSON cannot express.
    """
    embed_json = _NO_EMBED if embed is None else codec.dumps(embed)
    return EncodedBody(f"[{args_json}, {kwargs_json}, {embed_json}]".encode())


def encode_body(
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    embed: Mapping[str, Any],
    serializer: str,
) -> EncodedBody:
    """The body by one of the serializers that kombu knows: json, msgpack, yaml, pickle, auth, …

    Raises:
        kombu.exceptions.EncodeError: The serializer cannot express a value.
        kombu.exceptions.SerializerNotInstalled: There is no such serializer.
    """
    value: Any = (args, kwargs, embed)
    if serializer == "yaml":
        value = _without_subclasses(value)
    content_type, content_encoding, content = serialization.dumps(value, serializer)
    if isinstance(content, str):
        content = content.encode(content_encoding if content_encoding != "binary" else "utf-8")
    return EncodedBody(content, content_type, content_encoding)


def _without_subclasses(value: Any) -> Any:
    """A value whose mappings are dicts and whose sequences are lists: YAML's safe form knows no signatures."""
    if isinstance(value, Mapping):
        return {key: _without_subclasses(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_subclasses(item) for item in value]
    return value


def compressed(body: EncodedBody, method: str) -> EncodedBody:
    """The body in one of kombu's compressions: gzip, bzip2, lzma, brotli, zstd, …

    Raises ConfigurationError: there is no such compression here.
    """
    try:
        content, content_type = compressors.compress(body.content, method)
    except KeyError:
        known = ", ".join(sorted(compressors.encoders()))
        raise ConfigurationError(f"There is no compression {method!r} here. There are {known}.") from None
    return body._replace(content=content, compression=content_type)
