"""From a call of a task to its message and its first record: options, routing, Celery's headers.

What is the same for every call of a task is worked out once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from celery import states
from celery.canvas import Signature
from celery.utils.nodenames import anon_nodename
from celery.utils.saferepr import saferepr
from kombu.utils.functional import maybe_list

from celeriac.brokers.base import Publication
from celeriac.compat import current_execution
from celeriac.config import answers
from celeriac.errors import InvalidArguments
from celeriac.moments import Clock
from celeriac.propagation import Propagation, owner_in
from celeriac.protocol.body import EncodedBody, compressed, encode_body, json_body
from celeriac.protocol.builder import TaskHeaders, TaskMessageBuilder, properties_of
from celeriac.protocol.codec import dumps, dumps_list, dumps_record
from celeriac.protocol.message import Message
from celeriac.protocol.reprs import flat_repr
from celeriac.routing import Destination, NotNative, RouteTable
from celeriac.stores.records import Transition
from celeriac.timing import Now, system_now

__all__ = ["Call", "CallBuilder", "NotNative", "new_id", "planned"]

#: Options of a call that are headers of its message, by the headers' names.
_HEADERS = {
    "argsrepr": "argsrepr",
    "group_id": "group",
    "group_index": "group_index",
    "kwargsrepr": "kwargsrepr",
    "origin": "origin",
    "replaced_task_nesting": "replaced_task_nesting",
    "retries": "retries",
    "shadow": "shadow",
    "stamped_headers": "stamped_headers",
}

#: Options of a call that say what follows the task.
_EMBED_OPTIONS = ("link", "link_error", "chain", "chord")

_NO_EMBED: Mapping[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


@dataclass(slots=True)
class Call:
    """A message ready to go, the record that it starts, and what Celery's publish signals tell of it."""

    name: str
    publication: Publication
    record: Transition
    body: tuple[Sequence[Any], Mapping[str, Any], Mapping[str, Any]]
    #: Whether the id was made for this call, so that nobody has used it before.
    fresh: bool = True
    #: The records of tasks that this one leads to and that are published later.
    ahead: Sequence[Transition] = ()
    #: Ids among those that were not made for this call: their records may be older than it.
    known: Collection[str] = ()

    @property
    def task_id(self) -> str:
        return self.publication.task_id


class _Encoded(NamedTuple):
    """A call's arguments: as the record has them, and as they travel with what follows the task."""

    args_json: str
    kwargs_json: str
    body: EncodedBody
    embed: Mapping[str, Any]


class CallBuilder:
    """Builds the calls of one app; what is the same for every call of a task is worked out once.

    ``now`` is the time that a call is made at.
    """

    def __init__(self, app: Any, propagation: Propagation | None = None, now: Now = system_now) -> None:
        self._app = app
        self._amqp = app.amqp
        self._origin = anon_nodename()
        # Who enqueues natively reads the record, and waits at no queue for an answer.
        self._reply_to = "" if answers(app.conf) else app.thread_oid
        self._inherit_priority = bool(app.conf.task_inherit_parent_priority)
        self._protocol = app.conf.task_protocol
        self.propagation = propagation or Propagation()
        self._builders: dict[str, TaskMessageBuilder] = {}
        self._routes = RouteTable(app)
        self._clock = Clock(app)
        self._now = now

    def build(
        self,
        name: str,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        options: Mapping[str, Any],
    ) -> Call:
        """Make the call of the task ``name``; ``args`` and ``kwargs`` hold what its serializer can express.

        The options are those of Celery's ``apply_async`` and ``send_task``, and ``owner``. Raises NotNative for what
        is left to Celery; what Celery raises for an unknown queue; TypeError for what JSON cannot express, and
        ``kombu.exceptions.EncodeError`` for what another serializer cannot.
        """
        if self._protocol != 2:
            raise NotNative(name)
        args, kwargs = args or (), kwargs or {}
        destination, merged = self._routes.find(name, args, kwargs, options)
        if options and "owner" in options:
            merged["owner"] = options["owner"]  # None is an answer, too
        return self._assemble(name, args, kwargs, destination, merged)

    def build_retry(self, signature: Signature) -> Call:
        """The call that ``self.retry()`` has made: a new attempt of the same task. Raises as :meth:`build` does."""
        return self.build(signature.task, signature.args, signature.kwargs, signature.options)

    def _assemble(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        to: Destination,
        options: dict[str, Any],
    ) -> Call:
        take = options.pop
        now = self._now()
        given_id = take("task_id", None)
        task_id = str(given_id) if given_id else new_id(now)
        root_id, parent_id, priority = self._inherit(
            take("root_id", None), take("parent_id", None), take("priority", None)
        )
        if priority is not None and not (type(priority) is int and 0 <= priority <= 255):
            raise InvalidArguments(
                f"The priority of {name} is {priority!r}; it must be a whole number from 0 to 255."
            )
        # Nearly every call says this, and nothing else.
        ignore_result = take("ignore_result", None)
        carried = self.propagation.take(options)
        encoded = _encode(args, kwargs, options)
        headers: TaskHeaders = {
            "root_id": root_id or task_id,
            "parent_id": parent_id,
            "ignore_result": ignore_result,
        }
        due = expires = expiration = None
        if options:
            due = self._clock.eta(take("eta", None), take("countdown", None), now, headers)
            expires, expiration = self._clock.expiry(task_id, take("expires", None), now, headers)
            _move_headers(options, headers)
        if "argsrepr" not in headers:
            headers["argsrepr"] = self._repr(args)
        if "kwargsrepr" not in headers:
            headers["kwargsrepr"] = self._repr(kwargs)
        message = self._message(
            name, task_id, to, encoded.body, headers, carried, priority, expiration, options
        )
        record = _record(name, task_id, to, encoded, headers, now)
        record.owner = owner_in(carried) if carried else None
        record.eta, record.expires = due, expires
        waits = due if due is not None and due > now else None
        publication = Publication(
            message, to.queue, task_id, to.exchange, to.routing_key, priority or 0, waits
        )
        if not to.queue:
            publication.exchange_type, publication.bindings = to.exchange_type, to.bindings
        return Call(name, publication, record, (args, kwargs, encoded.embed), fresh=given_id is None)

    def _message(
        self,
        name: str,
        task_id: str,
        to: Destination,
        body: EncodedBody,
        headers: TaskHeaders,
        carried: Mapping[str, Any] | None,
        priority: int | None,
        expiration: float | None,
        options: dict[str, Any],
    ) -> Message:
        """The message; ``options`` are the caller's own headers and properties, as in Celery."""
        more = reply_to = others = None
        if options:
            more, reply_to = options.pop("headers", None), options.pop("reply_to", None)
            others = {**options.pop("properties", {}), **options}
        builder = self._builders.get(name)
        if builder is None:
            builder = self._builders[name] = TaskMessageBuilder(name, origin=self._origin)
        properties = properties_of(
            task_id,
            reply_to=reply_to or self._reply_to,
            delivery_mode=to.delivery_mode,
            expiration=expiration,
            priority=priority,
            others=others,
        )
        return builder.build(task_id, body, properties, headers, more, carried)

    def _inherit(
        self, root_id: str | None, parent_id: str | None, priority: int | None
    ) -> tuple[str | None, str | None, int | None]:
        """A task that is called while another runs is its child, as in Celery."""
        execution = current_execution()
        if execution is None or (root_id and parent_id):
            return root_id, parent_id, priority
        request = execution.request
        if priority is None and self._inherit_priority:
            priority = (request.delivery_info or {}).get("priority")
        return root_id or request.root_id or request.id, parent_id or request.id, priority

    def _repr(self, value: Sequence[Any] | Mapping[str, Any]) -> str:
        """Celery's ``saferepr`` of arguments."""
        if not value:
            return "{}" if isinstance(value, Mapping) else "()"
        amqp = self._amqp
        size = amqp.kwargsrepr_maxsize if isinstance(value, Mapping) else amqp.argsrepr_maxsize
        text = flat_repr(value, size)
        if text is None:
            given = value if isinstance(value, Mapping) else tuple(value)
            text = str(saferepr(given, size, maxlevels=self._app.conf.task_repr_maxlevels))
        # Half a surrogate pair travels in JSON's body, by its escape; no header may hold one.
        return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _record(
    name: str, task_id: str, to: Destination, encoded: _Encoded, headers: TaskHeaders, now: float
) -> Transition:
    """What the task's record begins with."""
    return Transition(
        task_id=task_id,
        state=states.PENDING,
        at=now,
        name=name,
        queue=to.recorded,
        args=encoded.args_json,
        kwargs=encoded.kwargs_json,
        root_id=headers["root_id"],
        parent_id=headers["parent_id"],
        group_id=headers.get("group"),
        retries=headers.get("retries", 0),
    )


def _encode(args: Sequence[Any], kwargs: Mapping[str, Any], options: dict[str, Any]) -> _Encoded:
    """Encode a call's arguments and what follows the task, and take that out of the options."""
    if not options:
        args_json, kwargs_json = dumps_list(args) if args else "[]", dumps(kwargs) if kwargs else "{}"
        return _Encoded(args_json, kwargs_json, json_body(args_json, kwargs_json), _NO_EMBED)
    take = options.pop
    serializer, compression = take("serializer", None) or "json", take("compression", None)
    embed = _NO_EMBED
    if not options.keys().isdisjoint(_EMBED_OPTIONS):
        embed = {
            "callbacks": maybe_list(take("link", None)),
            "errbacks": maybe_list(take("link_error", None)),
            "chain": take("chain", None),
            "chord": take("chord", None),
        }
    if serializer == "json":
        args_json, kwargs_json = dumps_list(args) if args else "[]", dumps(kwargs) if kwargs else "{}"
        body = json_body(args_json, kwargs_json, None if embed is _NO_EMBED else embed)
    else:
        args_json, kwargs_json = dumps_record(args), dumps_record(kwargs)
        body = encode_body(args, kwargs, embed, serializer)
    return _Encoded(args_json, kwargs_json, compressed(body, compression) if compression else body, embed)


def _move_headers(options: dict[str, Any], headers: TaskHeaders) -> None:
    """Move what is a header of Celery's from a call's options to the headers."""
    values: dict[str, Any] = {_HEADERS[key]: options.pop(key) for key in list(options) if key in _HEADERS}
    limits = options.pop("time_limit", None), options.pop("soft_time_limit", None)
    if limits != (None, None):
        values["timelimit"] = list(limits)
    if stamped := values.get("stamped_headers"):
        values["stamps"] = {stamp: options.pop(stamp) for stamp in stamped if stamp in options}
    headers.update(cast("TaskHeaders", values))


def planned(
    embed: Mapping[str, Any], *, root_id: str, at: float, owner: str | None = None
) -> list[Transition]:
    """Records for the tasks that a message already names, but that are published later: its chain and its chord's body,
    and what follows those.

    Without them the end of a chain, whose handle the caller has, would be an unknown id until its turn comes.
    """
    found = []
    ahead = [embed.get("chord"), *(embed.get("chain") or ())]
    while ahead:
        signature = ahead.pop()
        if not isinstance(signature, Mapping):
            continue
        kind, options = signature.get("subtask_type"), signature.get("options") or {}
        # The headers of a chord, and what is in a group, may be many, and the end of all is not among them.
        ahead.append(options.get("chord"))
        if kind == "chord":
            ahead.append(signature["kwargs"].get("body"))
        elif kind == "chain":
            ahead += signature["kwargs"].get("tasks") or ()
        if task_id := options.get("task_id"):
            name = None if kind else signature.get("task")
            found.append(
                Transition(task_id=task_id, state="PENDING", at=at, name=name, root_id=root_id, owner=owner)
            )
    return found


#: The digit that says which kind of UUID it is, from any digit.
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}

#: Hexadecimal digits of randomness for the next ids: asking the system for each is a tenth of the price of a call.
_random: list[str] = []
_RANDOM_DIGITS = 20
_RANDOM_IDS = 128

# A forked child would make its parent's ids.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.clear)


def new_id(now: float | None = None) -> str:
    """A UUID of version 7 (RFC 9562): ids made one after the other are neighbours in a database's index."""
    now = time.time() if now is None else now
    try:
        random = _random.pop()
    except IndexError:
        random = _more_random()
    digits = f"{int(now * 1000):012x}{random}"
    return f"{digits[:8]}-{digits[8:12]}-7{digits[13:16]}-{_VARIANT[digits[16]]}{digits[17:20]}-{digits[20:]}"


def _more_random() -> str:
    digits = os.urandom(_RANDOM_IDS * _RANDOM_DIGITS // 2).hex()
    first, *others = (digits[at : at + _RANDOM_DIGITS] for at in range(0, len(digits), _RANDOM_DIGITS))
    _random.extend(others)
    return first
