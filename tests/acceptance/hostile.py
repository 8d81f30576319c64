"""Messages that nobody should send, and how each broker's own client puts them into a queue."""

from __future__ import annotations

import base64
import json
import sqlite3
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiormq
import redis
from pamqp.commands import Basic

__all__ = ["Letter", "insert_sqlite", "letters", "publish_amqp", "push_redis", "raw_texts"]

JSON = "application/json"
PICKLE = "application/x-python-serialize"


@dataclass(frozen=True)
class Letter:
    """A message as AMQP has it."""

    name: str
    body: bytes
    headers: Mapping[str, Any] = field(default_factory=dict)
    content_type: str = JSON
    content_encoding: str = "utf-8"

    def envelope(self) -> str:
        """The same as kombu's virtual transports write it."""
        return json.dumps(
            {
                "body": base64.b64encode(self.body).decode(),
                "headers": self.headers,
                "content-type": self.content_type,
                "content-encoding": self.content_encoding,
                "properties": {
                    "delivery_info": {"exchange": "", "routing_key": "celery"},
                    "delivery_tag": self.name,
                    "body_encoding": "base64",
                    "priority": 0,
                },
            }
        )


def _bomb(marker: Path) -> bytes:
    """A pickle: whoever reads it makes a folder."""
    return f"cposix\nmkdir\n(V{marker}\ntR.".encode()


def _headers(**changes: Any) -> dict[str, Any]:
    return {"lang": "py", "task": "ledger.add", "id": "hostile", **changes}


def _args(*args: Any) -> bytes:
    return json.dumps([args, {}, {}]).encode()


def letters(marker: Path, *, most: int) -> Sequence[Letter]:
    """One of each kind; ``marker`` is made by whoever executes one, ``most`` is how many headers there may be."""
    good = _args(1, 2)
    return [
        Letter("nothing", b""),
        Letter("no headers", good),
        Letter("garbage", b"\x00\xff\xfe" * 100, _headers()),
        Letter("truncated", good[:-3], _headers()),
        Letter("not UTF-8", b'[["\xff"], {}, {}]', _headers()),
        Letter("deeply nested", b"[" * 200_000, _headers()),
        Letter("deeply nested, and closed", b"[" * 100_000 + b"]" * 100_000, _headers()),
        Letter("deeply nested objects", b'{"a":' * 100_000, _headers()),
        Letter("oversized", b"x" * 8_000_000, _headers()),
        Letter("a huge number", b"[[1" + b"0" * 100_000 + b"], {}, {}]", _headers()),
        Letter("a number", b"7", _headers()),
        Letter("null", b"null", _headers()),
        Letter("args are no list", b'["12", {}, {}]', _headers()),
        Letter("kwargs are no object", b"[[], [], {}]", _headers()),
        Letter("embed is no object", b"[[], {}, 1]", _headers()),
        Letter("a pickle as JSON", _bomb(marker), _headers()),
        Letter("a pickle", _bomb(marker), _headers(), PICKLE, "binary"),
        Letter("a pickle, compressed", zlib.compress(_bomb(marker)), _headers(compression="zlib"), PICKLE),
        Letter("not compressed", good, _headers(compression="zlib")),
        Letter("compressed by nobody knows what", good, _headers(compression="../../etc/passwd")),
        Letter("YAML", b"!!python/object/apply:os.mkdir [x]", _headers(), "application/x-yaml"),
        Letter("a type that is none", good, _headers(), "\x00", "utf-8"),
        Letter(
            "a tag that cannot be restored", b'[[{"__type__": "uuid", "__value__": 1}], {}, {}]', _headers()
        ),
        Letter("a task that is a list", good, _headers(task=["ledger.add"])),
        Letter("an id that is a list", good, _headers(id=["hostile"])),
        Letter("no id", good, {"lang": "py", "task": "ledger.add"}),
        Letter("an eta that is none", good, _headers(eta="tomorrow")),
        Letter("retries that are none", good, _headers(retries="many")),
        Letter("a time limit that is none", good, _headers(timelimit={"a": 1})),
        Letter("a chain that is none", json.dumps([[1, 2], {}, {"chain": 7}]).encode(), _headers()),
        Letter(
            "many headers",
            b"[",
            _headers(**{f"x-{number}": number for number in range(most)}),
        ),
    ]


def raw_texts() -> Sequence[bytes]:
    """What is no envelope at all."""
    whole = Letter("truncated", b"[]", _headers()).envelope().encode()
    return [
        b"null",
        b"7",
        b"[]",
        b"{}",
        b"not JSON",
        whole[: len(whole) // 2],
        b"[" * 200_000,
        b'{"body": ' * 50_000,
        b'{"body": 7, "headers": {}, "properties": {}}',
        b'{"body": "", "headers": [], "properties": {}}',
        b'{"body": "", "headers": {}, "properties": []}',
        b'{"body": "?", "headers": {}, "properties": {"body_encoding": "base64"}}',
        b'{"body": "W10=", "headers": {}, "properties": {"body_encoding": "rot13"}}',
        b'{"body": "W10=", "headers": {}, "properties": {"delivery_info": 7}}',
        b'{"body": "W10=", "headers": {}, "content-type": 7, "properties": {}}',
    ]


def push_redis(url: str, texts: Sequence[bytes]) -> None:
    """LPUSH, also of what is no text."""
    with redis.Redis.from_url(url) as client:
        for text in [*texts, b"", b"\x00\xff\xfe"]:
            client.lpush("celery", text)


def insert_sqlite(path: Path, texts: Sequence[bytes]) -> None:
    """INSERT, also of what is no text."""
    with sqlite3.connect(path, timeout=30) as connection:
        for text in [*(each.decode() for each in texts), "", b"\x00\xff\xfe"]:
            connection.execute(
                "INSERT INTO celeriac_message (queue, state, priority, deliveries, task_id, task, envelope)"
                " VALUES ('celery', 0, 0, 0, '', '', ?)",
                (text,),
            )
    connection.close()


async def publish_amqp(url: str, messages: Sequence[Letter]) -> None:
    """basic.publish, confirmed."""
    connection = await aiormq.connect(url)
    try:
        channel = await connection.channel(publisher_confirms=True)
        for letter in messages:
            properties = Basic.Properties(
                headers=dict(letter.headers),
                content_type=letter.content_type,
                content_encoding=letter.content_encoding,
                delivery_mode=2,
            )
            await channel.basic_publish(letter.body, routing_key="celery", properties=properties)
    finally:
        await connection.close()
