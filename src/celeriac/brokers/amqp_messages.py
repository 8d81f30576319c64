"""Between the port's messages and what AMQP 0-9-1 carries."""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from aiormq.abc import DeliveredMessage
from pamqp import commands as spec
from pamqp.body import ContentBody
from pamqp.constants import FRAME_HEADER_SIZE
from pamqp.frame import marshal
from pamqp.header import ContentHeader

from celeriac.brokers.base import DeadLetter, Publication
from celeriac.protocol.message import Message

__all__ = [
    "DELIVERIES",
    "DUE",
    "burial",
    "dead_letter",
    "deliveries_of",
    "due_of",
    "frames",
    "is_expressible",
    "message_of",
    "properties_of",
]

#: A header of ours: deliveries that RabbitMQ does not count, as they were of an earlier copy of the message.
DELIVERIES = "x-celeriac-deliveries"
#: A header of ours: before this time, in epoch microseconds, the message is not to be started. Whole, because the
#: driver writes fractions with seven digits.
DUE = "x-celeriac-due"
_OURS = frozenset({DELIVERIES, DUE, "x-celeriac-dead"})

#: What RabbitMQ adds on the way.
_ITS_OWN = frozenset(
    {
        "x-death",
        "x-first-death-queue",
        "x-first-death-reason",
        "x-first-death-exchange",
        "x-delivery-count",
        "x-last-death-exchange",
        "x-last-death-queue",
        "x-last-death-reason",
    }
)

#: The end of the year 9999, in epoch microseconds: no calendar shows what is later.
_LATEST = 253_402_300_799 * 10**6

#: Half a character, a number of more than 64 bits, tables in tables in tables.
_INEXPRESSIBLE = (ValueError, OverflowError, RecursionError, struct.error)

#: Properties of AMQP besides those that have a place of their own.
_PASSED = ("correlation_id", "reply_to", "expiration", "user_id", "app_id", "cluster_id")


def properties_of(
    message: Message, priority: int, message_id: str, extra: Mapping[str, Any] | None = None
) -> spec.Basic.Properties:
    """The properties of a message, its headers among them. ``extra`` are headers besides."""
    given = message.properties
    headers = {name: value for name, value in message.headers.items() if name not in _OURS | _ITS_OWN}
    if extra:
        headers.update(extra)
    expiration = given.get("expiration")
    return spec.Basic.Properties(
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        headers=headers,
        delivery_mode=given.get("delivery_mode") or 2,
        priority=priority or given.get("priority") or 0,
        correlation_id=given.get("correlation_id"),
        reply_to=given.get("reply_to") or None,
        expiration=None if expiration is None else str(expiration),
        message_id=message_id,
    )


def frames(
    channel: int,
    exchange: str,
    routing_key: str,
    properties: spec.Basic.Properties,
    body: bytes,
    largest: int,
) -> bytes:
    """One message as it goes over the wire, returned to us if no queue gets it.

    Raises TypeError for headers that AMQP cannot express.
    """
    try:
        header = marshal(ContentHeader(properties=properties, body_size=len(body)), channel)
        parts = [
            marshal(spec.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=True), channel),
            header,
        ]
    except _INEXPRESSIBLE as exc:
        raise TypeError(
            f"AMQP cannot express the message's exchange, routing key, headers or properties: {exc}."
        ) from exc
    if len(header) > largest + FRAME_HEADER_SIZE + 1:
        # The server would end the connection, and with it what others publish.
        raise TypeError(
            f"The message's headers have {len(header)} bytes, and RabbitMQ takes {largest}: put less into them."
        )
    parts += [marshal(ContentBody(body[at : at + largest]), channel) for at in range(0, len(body), largest)]
    return b"".join(parts)


def is_expressible(properties: spec.Basic.Properties) -> bool:
    """Whether AMQP can carry these properties. What was read need not be: it may be nested too deeply."""
    try:
        marshal(ContentHeader(properties=properties), 0)
    except (TypeError, *_INEXPRESSIBLE):
        return False
    return True


def message_of(delivered: DeliveredMessage, queue: str) -> Message:
    """What was delivered, as the worker reads it."""
    properties = delivered.header.properties
    headers = properties.headers or {}
    exchange, routing_key = delivered.exchange or "", delivered.routing_key or ""
    if DUE in headers or "x-death" in headers:
        # It comes from where delayed messages wait, whose names say nothing to anybody.
        exchange, routing_key = "", queue
    given: dict[str, Any] = {name: value for name in _PASSED if (value := getattr(properties, name))}
    given["delivery_mode"] = properties.delivery_mode or 2
    given["priority"] = properties.priority or 0
    given["delivery_info"] = {
        "exchange": exchange,
        "routing_key": routing_key,
        "redelivered": bool(delivered.redelivered),
        "priority": properties.priority or 0,
    }
    return Message(
        headers={name: value for name, value in headers.items() if name not in _OURS | _ITS_OWN},
        properties=given,
        body=delivered.body,
        content_type=properties.content_type or "application/data",
        content_encoding=properties.content_encoding or "utf-8",
    )


def deliveries_of(delivered: DeliveredMessage) -> int:
    """How often a message was delivered, this time included, as far as RabbitMQ and we have counted."""
    headers = delivered.header.properties.headers or {}
    return 1 + _whole(headers.get("x-delivery-count")) + _whole(headers.get(DELIVERIES))


def _whole(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0


def due_of(delivered: DeliveredMessage) -> float:
    """Before which time, in epoch seconds, a message must not be started: ours, or a stock client's ``eta``."""
    headers = delivered.header.properties.headers or {}
    due = headers.get(DUE)
    if type(due) is int:
        return due / 1e6
    eta = headers.get("eta")
    if type(eta) is not str:
        return 0.0
    try:
        at = datetime.fromisoformat(eta)
    except ValueError:
        return 0.0  # the worker says what is wrong with it
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def burial(publication: Publication, reason: str, deliveries: int, id_: str) -> dict[str, Any]:
    """The header of a dead letter."""
    task = publication.message.headers.get("task")
    info = publication.message.properties.get("delivery_info") or {}
    return {
        "x-celeriac-dead": {
            "id": id_,
            "queue": publication.queue,
            "reason": reason,
            "deliveries": deliveries,
            "at": int(time.time() * 1e6),
            "task_id": publication.task_id,
            "task": task if type(task) is str else "",
            "exchange": info.get("exchange") or "",
            "routing_key": info.get("routing_key") or "",
            "redelivered": bool(info.get("redelivered")),
        }
    }


def dead_letter(delivered: DeliveredMessage) -> DeadLetter:
    """A message of the queue of dead letters, where a policy may have RabbitMQ put some, too.

    Raises ValueError for one that somebody else has put there.
    """
    headers = delivered.header.properties.headers or {}
    about: Any = headers.get("x-celeriac-dead") or _given_up(delivered, headers)
    if not isinstance(about, dict) or not {"id", "queue", "at", "deliveries"} <= about.keys():
        raise ValueError("no dead letter of ours")
    at, deliveries = about["at"], about["deliveries"]
    if type(at) is not int or not 0 <= at <= _LATEST or type(deliveries) is not int:
        raise ValueError("no dead letter of ours")
    message = message_of(delivered, str(about["queue"]))
    info = {name: about.get(name) for name in ("exchange", "routing_key", "redelivered")}
    properties = {
        **message.properties,
        "delivery_info": {**info, "priority": message.properties["priority"]},
    }
    return DeadLetter(
        id=str(about["id"]),
        queue=str(about["queue"]),
        task_id=str(about.get("task_id") or ""),
        task=str(about.get("task") or ""),
        reason=str(about.get("reason") or ""),
        deliveries=deliveries,
        at=at / 1e6,
        envelope=replace(message, properties=properties),
    )


def _given_up(delivered: DeliveredMessage, headers: Mapping[str, Any]) -> dict[str, Any] | None:
    """What :func:`burial` would say of a message that RabbitMQ itself has given up, which says it in ``x-death``."""
    deaths: Any = headers.get("x-death")
    last = deaths[0] if isinstance(deaths, list) and deaths else None
    if not isinstance(last, dict) or not isinstance(last.get("time"), datetime):
        return None
    queue, at, task_id, task = last.get("queue"), last["time"], headers.get("id"), headers.get("task")
    known_by = repr((delivered.header.properties.message_id, task_id, queue, at))
    return {
        "id": sha256(known_by.encode()).hexdigest()[:32],
        "queue": queue,
        "reason": f"RabbitMQ gave it up: {last.get('reason')}",
        "deliveries": _whole(headers.get(DELIVERIES)),
        "at": int(at.timestamp() * 1e6),
        "task_id": task_id if type(task_id) is str else "",
        "task": task if type(task) is str else "",
        "exchange": "",
        "routing_key": queue,
    }
