"""What travels: one message, and a task message that was received, with its parts.

The fields are those of Celery's "Message Protocol", version 2:
https://docs.celeryq.dev/en/stable/internals/protocol.html
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from celeriac.errors import MalformedMessage
from celeriac.protocol import codec, fields, v1

__all__ = ["Message", "TaskMessage"]


@dataclass(slots=True)
class Message:
    """A message as Celery and kombu see it, whatever broker carries it. Nobody changes one that was made.

    ``properties`` are AMQP's (``correlation_id``, ``reply_to``, ``priority``, ``delivery_mode``, ``expiration``,
    ``delivery_info``); ``headers`` are Celery's protocol v2 and whatever a caller added.
    """

    headers: Mapping[str, Any]
    properties: Mapping[str, Any]
    body: bytes
    content_type: str = "application/json"
    content_encoding: str = "utf-8"
    #: The headers as JSON, where whoever made the message has them at hand. Who changes the headers clears it.
    headers_json: str | None = None


@dataclass(slots=True)
class TaskMessage:
    """A task message that was received, decoded and checked: every field has the type that it says.

    Nobody changes one that was made; the interpreter is not asked to see to it, because making one would cost thrice.

    ``headers`` are all the headers, as v2 has them even if the message was v1. ``body`` is what the content type
    and encoding describe, after decompression. ``eta`` and ``expires`` are UTC.
    """

    id: str
    task: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    embed: Mapping[str, Any]
    retries: int
    eta: datetime | None
    expires: datetime | None
    time_limit: float | None
    soft_time_limit: float | None
    headers: Mapping[str, Any]
    properties: Mapping[str, Any]
    body: bytes
    content_type: str
    content_encoding: str

    @classmethod
    def from_message(
        cls, message: Message, accept: Collection[str] = frozenset([codec.JSON_TYPE])
    ) -> TaskMessage:
        """Read a message of protocol v2 or v1.

        Args:
            message: What a broker delivered.
            accept: The content types, or kombu's names for them, that may be decoded (Celery's ``accept_content``).

        Raises:
            ContentDisallowed: The content type is not in ``accept``.
            MalformedMessage: A field is missing or of the wrong type; the message names it. Nothing else is raised.
        """
        headers = message.headers
        try:
            body = codec.decompress_body(message)
            value = codec.deserialize(message, body, accept)
            if isinstance(value, dict):
                headers, value = v1.upgrade(headers, value)
            args, kwargs, embed = codec.check_body(value)
            task_id, task = fields.identifier(headers, "id"), fields.identifier(headers, "task")
            fields.check_headers(headers)
            fields.check_properties(message.properties)
            fields.check_embed(embed)
            time_limit, soft_time_limit = fields.time_limits(headers)
            return cls(
                task_id,
                task,
                args,
                kwargs,
                embed,
                headers.get("retries") or 0,
                fields.moment(headers, "eta"),
                fields.moment(headers, "expires"),
                time_limit,
                soft_time_limit,
                headers,
                message.properties,
                body,
                message.content_type,
                message.content_encoding,
            )
        except MalformedMessage as exc:
            exc.task_id, exc.task = fields.readable(headers.get("id")), fields.readable(headers.get("task"))
            raise

    @property
    def root_id(self) -> str:
        """The first task of the tree that this one belongs to; its own id if there is no other."""
        return self.headers.get("root_id") or self.id

    @property
    def parent_id(self) -> str | None:
        """The task that published this one."""
        return self.headers.get("parent_id")

    @property
    def group_id(self) -> str | None:
        """The group that the task is part of."""
        return self.headers.get("group")

    @property
    def group_index(self) -> int | None:
        """The task's place in its group."""
        return self.headers.get("group_index")

    @property
    def shadow(self) -> str | None:
        """The name that logs and events show instead of the task's."""
        return self.headers.get("shadow")

    @property
    def ignore_result(self) -> bool | None:
        """Whether the caller wants the result dropped; ``None`` leaves it to the task."""
        return self.headers.get("ignore_result")

    @property
    def argsrepr(self) -> str | None:
        """The positional arguments as logs show them."""
        return self.headers.get("argsrepr")

    @property
    def kwargsrepr(self) -> str | None:
        """The keyword arguments as logs show them."""
        return self.headers.get("kwargsrepr")

    @property
    def origin(self) -> str | None:
        """The node that published the message."""
        return self.headers.get("origin")

    @property
    def replaced_task_nesting(self) -> int:
        """How often the task was replaced (``Task.replace``)."""
        return self.headers.get("replaced_task_nesting") or 0

    @property
    def stamped_headers(self) -> Sequence[str]:
        """The names of the stamps."""
        return self.headers.get("stamped_headers") or ()

    @property
    def stamps(self) -> Mapping[str, Any]:
        """The stamps and their values."""
        return self.headers.get("stamps") or {}

    @property
    def callbacks(self) -> Sequence[Mapping[str, Any]] | None:
        """Signatures to call with the result."""
        return self.embed.get("callbacks")

    @property
    def errbacks(self) -> Sequence[Mapping[str, Any]] | None:
        """Signatures to call on failure."""
        return self.embed.get("errbacks")

    @property
    def chain(self) -> Sequence[Mapping[str, Any]] | None:
        """The rest of the chain, in reverse order."""
        return self.embed.get("chain")

    @property
    def chord(self) -> Mapping[str, Any] | None:
        """The signature of the body of the chord that the task is a header of."""
        return self.embed.get("chord")

    @property
    def reply_to(self) -> str | None:
        """The queue that a direct reply goes to."""
        return self.properties.get("reply_to")

    @property
    def correlation_id(self) -> str | None:
        """What a direct reply is matched by."""
        return self.properties.get("correlation_id")

    @property
    def priority(self) -> int | None:
        """The message's priority as its publisher set it."""
        return self.properties.get("priority")
