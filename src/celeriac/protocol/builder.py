"""How a v2 task message is put together: header by header and byte by byte what ``Celery.send_task`` sends.

The fields are those of Celery's "Message Protocol", version 2:
https://docs.celeryq.dev/en/stable/internals/protocol.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from celeriac.protocol import codec
from celeriac.protocol.body import EncodedBody
from celeriac.protocol.message import Message

__all__ = ["TaskHeaders", "TaskMessageBuilder", "properties_of"]


class TaskHeaders(TypedDict, total=False):
    """The headers that differ from call to call, under their names on the wire.

    Times are ISO 8601, limits seconds: ``timelimit`` is ``[hard, soft]``. ``root_id`` is the first task of the tree,
    the task itself if there is no other. ``ignore_result`` of ``None`` leaves it to the task. ``stamps`` are the
    values of ``stamped_headers``.
    """

    shadow: str | None
    eta: str | None
    expires: str | None
    group: str | None
    group_index: int | None
    retries: int
    timelimit: Sequence[float | None]
    root_id: str
    parent_id: str | None
    argsrepr: str | None
    kwargsrepr: str | None
    origin: str
    ignore_result: bool | None
    replaced_task_nesting: int
    stamped_headers: Sequence[str] | None
    stamps: Mapping[str, Any]


class TaskMessageBuilder:
    """Builds the messages of one task.

    Args:
        name: The task's name.
        origin: Who publishes, as ``celery.utils.nodenames.anon_nodename`` names a process.
    """

    __slots__ = ("_name_json", "_origin", "_origin_json", "_template", "name")

    def __init__(self, name: str, *, origin: str) -> None:
        self.name = name
        self._origin = origin
        self._name_json = codec.text_json(name)
        self._origin_json = codec.text_json(origin)
        # In Celery's order, which a copy keeps.
        self._template: dict[str, Any] = {
            "lang": "py",
            "task": name,
            "id": None,
            "shadow": None,
            "eta": None,
            "expires": None,
            "group": None,
            "group_index": None,
            "retries": 0,
            "timelimit": None,
            "root_id": None,
            "parent_id": None,
            "argsrepr": None,
            "kwargsrepr": None,
            "origin": origin,
            "ignore_result": None,
            "replaced_task_nesting": 0,
            "stamped_headers": None,
            "stamps": None,
        }

    def build(
        self,
        task_id: str,
        body: EncodedBody,
        properties: Mapping[str, Any],
        headers: TaskHeaders,
        more: Mapping[str, Any] | None = None,
        carried: Mapping[str, Any] | None = None,
    ) -> Message:
        """A message that calls the task.

        Args:
            task_id: The id of this call.
            body: The arguments, and what follows the task.
            properties: As :func:`properties_of` makes them.
            headers: What is not said is nothing, zero, and no tree but the task's own.
            more: The caller's own headers; they win over all others.
            carried: Headers of ours, which Celery does not know.
        """
        content, content_type, content_encoding, compression = body
        values = self._template.copy()
        values["id"] = values["root_id"] = task_id
        # Not in the template: a receiver of Celery's publish signals may change them.
        values["timelimit"] = [None, None]
        values["stamps"] = {}
        values.update(headers)
        plain = None
        if more or compression:
            values.update(carried or {})
            values.update(more or {})
            if compression:
                values["compression"] = compression
        else:
            plain = self._plain_headers(values)
            if carried:
                values.update(carried)
                plain = plain and f"{plain[:-1]}, {codec.dumps(carried)[1:]}"
        return Message(values, properties, content, content_type, content_encoding, plain)

    def _plain_headers(self, headers: Mapping[str, Any]) -> str | None:
        """What ``json.dumps`` makes of the headers of a call that leaves most of them alone, in a third of the time."""
        get = headers.__getitem__
        if get("timelimit") != _NO_LIMITS or get("stamps") or get("replaced_task_nesting"):
            return None
        if not (get("shadow") is get("group") is get("group_index") is get("stamped_headers") is None):
            return None
        if get("origin") is not self._origin:
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


def properties_of(
    task_id: str,
    *,
    reply_to: str = "",
    delivery_mode: int = 2,
    expiration: float | None = None,
    priority: int | None = None,
    others: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The properties of a task's message.

    Args:
        task_id: Also the correlation id, unless ``others`` have one.
        reply_to: The queue that a direct reply goes to.
        delivery_mode: AMQP's: 2 is persistent, 1 transient.
        expiration: Seconds after which the broker may drop the message (AMQP's ``expiration``, in milliseconds).
        priority: 0 to 9, higher first.
        others: More of AMQP's.
    """
    properties: dict[str, Any] = {"correlation_id": task_id, "reply_to": reply_to}
    if others:
        properties.update(others)
    properties["delivery_mode"] = delivery_mode
    if expiration is not None:
        properties["expiration"] = str(int(expiration * 1000))
    if priority is not None:
        properties["priority"] = priority
    return properties
