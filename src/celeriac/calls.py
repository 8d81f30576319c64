"""From a call of a task to its message and its first record: options, routing, Celery's headers.

What is the same for every call of a task is worked out once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from celery import states
from celery.app.routes import MapRoute
from celery.canvas import Signature
from celery.utils.nodenames import anon_nodename
from celery.utils.saferepr import saferepr

from celeriac.brokers.base import Publication
from celeriac.compat import current_execution
from celeriac.protocol.codec import dumps, dumps_list
from celeriac.protocol.message import TaskMessageBuilder
from celeriac.stores.records import Transition

__all__ = ["Call", "CallBuilder", "NotNative", "planned"]

#: Options that only Celery's own, synchronous publishing understands.
_SYNCHRONOUS_OPTIONS = frozenset(
    {
        "compression",
        "connection",
        "declare",
        "exchange",
        "exchange_type",
        "producer",
        "publisher",
        "routing_key",
    }
)

#: Options that say how Celery publishes, not what; ours has one way.
_IGNORED_OPTIONS = frozenset(
    {
        "add_to_parent",
        "confirm_timeout",
        "result_cls",
        "retry",
        "retry_policy",
        "router",
        "route_name",
        "task_type",
    }
)

#: What the message builder knows by name; any other option is a property, as in Celery.
_BUILDER_OPTIONS = frozenset(
    {
        "delivery_mode",
        "argsrepr",
        "group_index",
        "headers",
        "ignore_result",
        "kwargsrepr",
        "properties",
        "replaced_task_nesting",
        "reply_to",
        "shadow",
        "soft_time_limit",
        "stamped_headers",
        "time_limit",
    }
)

_PLAIN_TYPES = frozenset({int, float, bool, type(None)})


class NotNative(Exception):
    """The call asks for something that Celery's own publishing has to do."""


@dataclass(slots=True)
class Call:
    """A message ready to go, the record that it starts, and what Celery's publish signals tell of it."""

    name: str
    publication: Publication
    record: Transition
    body: tuple[Sequence[Any], Mapping[str, Any], Mapping[str, Any]]
    #: Whether the id was made for this call, so that nobody has used it before.
    fresh: bool = True

    @property
    def task_id(self) -> str:
        return self.publication.task_id


class _Route(NamedTuple):
    """Where calls of a task go, and the options that all of them start from."""

    queue: str
    options: Mapping[str, Any]


class CallBuilder:
    """Builds the calls of one app; what is the same for every call of a task is worked out once."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._origin = anon_nodename()
        self._reply_to = app.thread_oid
        self._default_priority: int | None = app.conf.task_default_priority
        self._inherit_priority = bool(app.conf.task_inherit_parent_priority)
        self._builders: dict[str, TaskMessageBuilder] = {}
        self._routes: dict[tuple[str, str | None], _Route] = {}

    def build(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Call:
        """Make the call of the task ``name``; ``args`` and ``kwargs`` hold JSON values.

        The options are those of Celery's ``apply_async``, and ``owner``. Raises NotNative for what is left to
        Celery, and what Celery raises for an unknown queue.
        """
        route = self._route(name, args, kwargs, options.get("queue"))
        if not options:
            return self._assemble(name, args, kwargs, route.queue, dict(route.options))
        merged = {**route.options, **options}
        merged.pop("queue", None)
        merged = {
            key: value for key, value in merged.items() if value is not None and key not in _IGNORED_OPTIONS
        }
        if merged.pop("serializer", "json") != "json" or not _SYNCHRONOUS_OPTIONS.isdisjoint(merged):
            raise NotNative(name)
        return self._assemble(name, args, kwargs, route.queue, merged)

    def build_retry(self, signature: Signature) -> Call:
        """The call that ``self.retry()`` has made: a new attempt of the same task. Raises NotNative."""
        return self.build(signature.task, signature.args, signature.kwargs, signature.options)

    def _route(self, name: str, args: Any, kwargs: Any, queue: Any) -> _Route:
        key = (name, getattr(queue, "name", queue))
        known = self._routes.get(key)
        if known is not None:
            return known
        amqp = self._app.amqp
        task = self._app._tasks.get(name)
        defaults = _defaults_of(task)
        asked = queue or defaults.pop("queue", None)
        routed = amqp.router.route({} if asked is None else {"queue": asked}, name, args, kwargs, task)
        chosen = routed.pop("queue", None) or amqp.default_queue
        chosen = amqp.queues[chosen] if isinstance(chosen, str) else chosen
        options = {**routed, **defaults}
        foreign = not _SYNCHRONOUS_OPTIONS.isdisjoint(options) or options.pop("serializer", "json") != "json"
        if foreign or (chosen.exchange.type or "direct") != "direct":
            raise NotNative(name)
        found = _Route(chosen.name, options)
        # A route that is a function may answer differently for other arguments.
        if all(isinstance(route, MapRoute) for route in amqp.routes):
            self._routes[key] = found
        return found

    def _assemble(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], queue: str, options: dict[str, Any]
    ) -> Call:
        take = options.pop
        now = time.time()
        given_id = take("task_id", None)
        task_id = str(given_id) if given_id else _new_id(now)
        root_id, parent_id, priority = self._inherit(
            take("root_id", None), take("parent_id", None), take("priority", None)
        )
        args_json = dumps_list(args) if args else "[]"
        kwargs_json = dumps(kwargs) if kwargs else "{}"
        owner = eta = due = expires = expires_at = group_id = None
        embed, retries, more = _NO_EMBED, 0, options
        if options.keys() - _BUILDER_OPTIONS:
            owner, group_id, retries = take("owner", None), take("group_id", None), take("retries", 0)
            eta, due = _moment(take("eta", None), take("countdown", None), now)
            expires, expires_at = _moment(take("expires", None), None, now)
            embed = _embed(options)
            more = _builder_options(options, expires_at and max(0.0, expires_at - now))
        builder = self._builders.get(name)
        if builder is None:
            builder = self._builders[name] = TaskMessageBuilder(name, origin=self._origin)
        message = builder.build(
            task_id,
            args_json=args_json,
            kwargs_json=kwargs_json,
            argsrepr=more.pop("argsrepr", None) or _repr(tuple(args)),
            kwargsrepr=more.pop("kwargsrepr", None) or _repr(kwargs),
            eta=eta,
            expires=expires,
            retries=retries,
            root_id=root_id,
            parent_id=parent_id,
            group_id=group_id,
            priority=priority,
            reply_to=more.pop("reply_to", self._reply_to),
            **embed,
            **more,
        )
        waits = due if due is not None and due > now else None
        record = Transition(
            task_id=task_id,
            state=states.PENDING,
            at=now,
            name=name,
            queue=queue,
            args=args_json,
            kwargs=kwargs_json,
            owner=owner,
            root_id=root_id or task_id,
            parent_id=parent_id,
            group_id=group_id,
            eta=due,
            expires=expires_at,
            retries=retries,
        )
        publication = Publication(message, queue, task_id, "", queue, priority or 0, waits)
        return Call(name, publication, record, (args, kwargs, embed), fresh=given_id is None)

    def _inherit(
        self, root_id: str | None, parent_id: str | None, priority: int | None
    ) -> tuple[str | None, str | None, int | None]:
        """A task that is called while another runs is its child, as in Celery."""
        execution = current_execution()
        if execution is not None:
            request = execution.request
            root_id = root_id or request.root_id or request.id
            parent_id = parent_id or request.id
            if priority is None and self._inherit_priority:
                priority = (request.delivery_info or {}).get("priority")
        return root_id, parent_id, self._default_priority if priority is None else priority


_NO_EMBED: Mapping[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def _embed(options: dict[str, Any]) -> Mapping[str, Any]:
    """What follows the task, under the names that it has in the message."""
    return {
        "callbacks": _listed(options.pop("link", None)),
        "errbacks": _listed(options.pop("link_error", None)),
        "chain": options.pop("chain", None),
        "chord": options.pop("chord", None),
    }


def _builder_options(options: dict[str, Any], expiration: float | None) -> dict[str, Any]:
    """The rest of a call's options as the message builder takes them; any other is a property, as in Celery."""
    stamped = options.get("stamped_headers") or ()
    known = {key: options.pop(key) for key in list(options) if key in _BUILDER_OPTIONS}
    if stamped:
        known["stamps"] = {header: options.pop(header) for header in stamped if header in options}
    if "origin" in options:
        known["headers"] = {**known.get("headers", {}), "origin": options.pop("origin")}
    if options:
        known["properties"] = {**known.get("properties", {}), **options}
    known["expiration"] = expiration
    return known


def planned(embed: Mapping[str, Any], *, root_id: str, at: float) -> list[Transition]:
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
            found.append(Transition(task_id=task_id, state="PENDING", at=at, name=name, root_id=root_id))
    return found


def _defaults_of(task: Any) -> dict[str, Any]:
    if task is None:
        return {}
    defaults = task.call_defaults if hasattr(task, "call_defaults") else task._get_exec_options()
    return {
        key: value for key, value in defaults.items() if value is not None and key not in _IGNORED_OPTIONS
    }


def _moment(at: Any, after: float | timedelta | None, now: float) -> tuple[str | None, float | None]:
    """A time as Celery's header has it, and in epoch seconds; from a datetime, ISO text, or seconds from now."""
    if after:
        at = after
    if at is None:
        return None, None
    if isinstance(at, timedelta):
        at = at.total_seconds()
    if isinstance(at, (int, float)):
        at = datetime.fromtimestamp(now + at, UTC)
    elif isinstance(at, str):
        at = datetime.fromisoformat(at)
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return at.isoformat(), at.timestamp()


#: The digit that says which kind of UUID it is, from any digit.
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


def _new_id(now: float) -> str:
    """A UUID of version 7 (RFC 9562): ids made one after the other are neighbours in a database's index."""
    digits = f"{int(now * 1000):012x}{os.urandom(10).hex()}"
    return f"{digits[:8]}-{digits[8:12]}-7{digits[13:16]}-{_VARIANT[digits[16]]}{digits[17:20]}-{digits[20:]}"


def _listed(value: Any) -> Any:
    return value if value is None or isinstance(value, (list, tuple)) else [value]


def _repr(value: tuple[Any, ...] | Mapping[str, Any]) -> str:
    """Celery's ``saferepr``, which costs twenty times as much as ``repr`` and differs only for what is not plain."""
    if not value:
        return "{}" if isinstance(value, Mapping) else "()"
    items = value.values() if isinstance(value, Mapping) else value
    for item in items:
        if type(item) not in _PLAIN_TYPES and not (type(item) is str and len(item) < 64 and item.isalnum()):
            return str(saferepr(value, 1024))
    return repr(value)
