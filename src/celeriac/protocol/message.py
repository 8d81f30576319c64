"""What travels: one message, its parts, and how a v2 task message is put together.

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

__all__ = ["Message", "TaskMessage", "TaskMessageBuilder"]


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


_NO_EMBED = '{"callbacks": null, "errbacks": null, "chain": null, "chord": null}'


class TaskMessageBuilder:
    """Builds the messages of one task: header by header and byte by byte what ``Celery.send_task`` sends as JSON.

    Args:
        name: The task's name.
        origin: Who publishes, as ``celery.utils.nodenames.anon_nodename`` names a process.
    """

    __slots__ = ("_name_json", "_origin_json", "name", "origin")

    def __init__(self, name: str, *, origin: str) -> None:
        self.name = name
        self.origin = origin
        self._name_json = codec.text_json(name)
        self._origin_json = codec.text_json(origin)

    def build(
        self,
        task_id: str,
        *,
        args_json: str = "[]",
        kwargs_json: str = "{}",
        argsrepr: str | None = None,
        kwargsrepr: str | None = None,
        retries: int = 0,
        eta: str | None = None,
        expires: str | None = None,
        time_limit: float | None = None,
        soft_time_limit: float | None = None,
        root_id: str | None = None,
        parent_id: str | None = None,
        group_id: str | None = None,
        group_index: int | None = None,
        shadow: str | None = None,
        ignore_result: bool | None = False,
        reply_to: str = "",
        chain: Sequence[Any] | None = None,
        chord: Any = None,
        callbacks: Sequence[Any] | None = None,
        errbacks: Sequence[Any] | None = None,
        headers: Mapping[str, Any] | None = None,
        stamped_headers: Sequence[str] | None = None,
        stamps: Mapping[str, Any] | None = None,
        replaced_task_nesting: int = 0,
        priority: int | None = None,
        expiration: float | None = None,
        delivery_mode: int = 2,
        properties: Mapping[str, Any] | None = None,
    ) -> Message:
        """A message that calls the task.

        Args:
            task_id: The id of this call; also its correlation id.
            args_json: The positional arguments as :func:`celeriac.protocol.codec.dumps` writes a list.
            kwargs_json: The keyword arguments, likewise.
            argsrepr: The positional arguments as logs show them.
            kwargsrepr: The keyword arguments as logs show them.
            eta: The earliest time of the call, ISO 8601.
            expires: The time after which the call is not wanted any more, ISO 8601.
            time_limit: Seconds after which the task is stopped.
            soft_time_limit: Seconds after which the task is told to stop.
            root_id: The first task of the tree; this one if there is none.
            chain: The rest of the chain, in reverse order.
            chord: The signature of the body of the chord that the task is a header of.
            callbacks: Signatures to call with the result.
            errbacks: Signatures to call on failure.
            headers: More headers; they win over all that are named here.
            stamps: The values of ``stamped_headers``.
            expiration: Seconds after which the broker may drop the message (AMQP's ``expiration``).
            delivery_mode: AMQP's: 2 is persistent, 1 transient.
            properties: More properties.

        Raises:
            TypeError: A signature is nothing that kombu's JSON can express.
        """
        all_headers: dict[str, Any] = {
            "lang": "py",
            "task": self.name,
            "id": task_id,
            "shadow": shadow,
            "eta": eta,
            "expires": expires,
            "group": group_id,
            "group_index": group_index,
            "retries": retries,
            "timelimit": [time_limit, soft_time_limit],
            "root_id": root_id or task_id,
            "parent_id": parent_id,
            "argsrepr": argsrepr,
            "kwargsrepr": kwargsrepr,
            "origin": self.origin,
            "ignore_result": ignore_result,
            "replaced_task_nesting": replaced_task_nesting,
            "stamped_headers": stamped_headers,
            "stamps": stamps or {},
        }
        if headers:
            all_headers.update(headers)
        return Message(
            all_headers,
            _properties(task_id, reply_to, properties, delivery_mode, expiration, priority),
            _body(args_json, kwargs_json, callbacks, errbacks, chain, chord),
            headers_json=None if headers else self._plain_headers(all_headers),
        )

    def _plain_headers(self, headers: Mapping[str, Any]) -> str | None:
        """What ``json.dumps`` makes of the headers of a call that leaves most of them alone, in a third of the time."""
        get = headers.__getitem__
        if get("timelimit") != _NO_LIMITS or get("stamps") or get("replaced_task_nesting"):
            return None
        if not (get("shadow") is get("group") is get("group_index") is get("stamped_headers") is None):
            return None
        text = codec.text_json
        return (
            f'{{"lang": "py", "task": {self._name_json}, "id": {text(headers["id"])}, "shadow": null, '
            f'"eta": {text(headers["eta"])}, "expires": {text(headers["expires"])}, '
            f'"group": null, "group_index": null, "retries": {headers["retries"]}, "timelimit": [null, null], '
            f'"root_id": {text(headers["root_id"])}, "parent_id": {text(headers["parent_id"])}, '
            f'"argsrepr": {text(headers["argsrepr"])}, "kwargsrepr": {text(headers["kwargsrepr"])}, '
            f'"origin": {self._origin_json}, "ignore_result": {_TRUTH[headers["ignore_result"]]}, '
            f'"replaced_task_nesting": 0, "stamped_headers": null, "stamps": {{}}}}'
        )


_NO_LIMITS = [None, None]

_TRUTH = {True: "true", False: "false", None: "null"}


def _body(args_json: str, kwargs_json: str, callbacks: Any, errbacks: Any, chain: Any, chord: Any) -> bytes:
    """What ``json.dumps([args, kwargs, embed])`` gives, without encoding the arguments a second time."""
    embed = _NO_EMBED
    if callbacks is not None or errbacks is not None or chain is not None or chord is not None:
        embed = codec.dumps({"callbacks": callbacks, "errbacks": errbacks, "chain": chain, "chord": chord})
    return f"[{args_json}, {kwargs_json}, {embed}]".encode()


def _properties(
    task_id: str,
    reply_to: str,
    others: Mapping[str, Any] | None,
    delivery_mode: int,
    expiration: float | None,
    priority: int | None,
) -> dict[str, Any]:
    properties: dict[str, Any] = {"correlation_id": task_id, "reply_to": reply_to}
    if others:
        properties.update(others)
    properties["delivery_mode"] = delivery_mode
    if expiration is not None:
        properties["expiration"] = str(int(expiration * 1000))
    if priority is not None:
        properties["priority"] = priority
    return properties


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
