"""From a call of a task to its message and its first record: options, routing, Celery's headers.

What is the same for every call of a task is worked out once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from celery.app.routes import MapRoute
from celery.canvas import Signature
from celery.utils.nodenames import anon_nodename
from celery.utils.saferepr import saferepr

from celeriac.brokers.base import Publication
from celeriac.compat import current_execution
from celeriac.protocol.codec import dumps
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
        "group_index",
        "headers",
        "ignore_result",
        "properties",
        "replaced_task_nesting",
        "shadow",
        "soft_time_limit",
        "stamped_headers",
        "time_limit",
    }
)

_PLAIN_TYPES = frozenset({int, float, bool, type(None)})


class NotNative(Exception):
    """The call asks for something that Celery's own publishing has to do."""


@dataclass(frozen=True, slots=True)
class Call:
    """A message ready to go, the record that it starts, and what Celery's publish signals tell of it."""

    name: str
    publication: Publication
    record: Transition
    body: tuple[Sequence[Any], Mapping[str, Any], Mapping[str, Any]]

    @property
    def task_id(self) -> str:
        return self.publication.task_id


class CallBuilder:
    """Builds the calls of one app."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._origin = anon_nodename()
        self._reply_to = app.thread_oid
        self._builders: dict[str, TaskMessageBuilder] = {}
        self._queues: dict[tuple[str, str | None], tuple[str, Mapping[str, Any]]] = {}

    def build(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: dict[str, Any]
    ) -> Call:
        """Make the call of the task ``name``; ``args`` and ``kwargs`` hold JSON values, ``options`` is used up.

        The options are those of Celery's ``apply_async``, and ``owner``. Raises NotNative for what is left to
        Celery, and what Celery raises for an unknown queue.
        """
        task = self._app._tasks.get(name)
        options = _with_task_defaults(task, options)
        if options.pop("serializer", None) not in (None, "json") or not _SYNCHRONOUS_OPTIONS.isdisjoint(
            options
        ):
            raise NotNative(name)
        if not _IGNORED_OPTIONS.isdisjoint(options):
            options = {key: value for key, value in options.items() if key not in _IGNORED_OPTIONS}
        queue, routed = self._route(name, args, kwargs, task, options.pop("queue", None))
        options = {**routed, **options} if routed else options
        return self._assemble(name, args, kwargs, queue, options)

    def build_retry(self, signature: Signature) -> Call:
        """The call that ``self.retry()`` has made: a new attempt of the same task. Raises NotNative."""
        return self.build(signature.task, signature.args, signature.kwargs, dict(signature.options))

    def _route(
        self, name: str, args: Any, kwargs: Any, task: Any, queue: Any
    ) -> tuple[str, Mapping[str, Any]]:
        key = (name, getattr(queue, "name", queue))
        known = self._queues.get(key)
        if known is not None:
            return known
        amqp = self._app.amqp
        routed = amqp.router.route({} if queue is None else {"queue": queue}, name, args, kwargs, task)
        chosen = routed.pop("queue", None) or amqp.default_queue
        chosen = amqp.queues[chosen] if isinstance(chosen, str) else chosen
        if (chosen.exchange.type or "direct") != "direct" or not _SYNCHRONOUS_OPTIONS.isdisjoint(routed):
            raise NotNative(name)
        found: tuple[str, Mapping[str, Any]] = (chosen.name, routed)
        # A route that is a function may answer differently for other arguments.
        if all(isinstance(route, MapRoute) for route in amqp.routes):
            self._queues[key] = found
        return found

    def _assemble(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], queue: str, options: dict[str, Any]
    ) -> Call:
        now = time.time()
        task_id = options.pop("task_id", None) or str(uuid4())
        owner = options.pop("owner", None)
        eta, due = _moment(options.pop("eta", None), options.pop("countdown", None), now)
        expires, expires_at = _moment(options.pop("expires", None), None, now)
        priority = options.pop("priority", None)
        root_id, parent_id, priority = self._inherit(
            options.pop("root_id", None), options.pop("parent_id", None), priority
        )
        retries = options.pop("retries", 0)
        group_id = options.pop("group_id", None)
        stamped = options.get("stamped_headers")
        stamps = {header: options.pop(header) for header in stamped if header in options} if stamped else None
        embed = {
            "callbacks": _listed(options.pop("link", None)),
            "errbacks": _listed(options.pop("link_error", None)),
            "chain": options.pop("chain", None),
            "chord": options.pop("chord", None),
        }
        origin = options.pop("origin", None)
        if origin is not None:
            options["headers"] = {**options.get("headers", {}), "origin": origin}
        reply_to = options.pop("reply_to", None) or self._reply_to
        argsrepr = options.pop("argsrepr", None) or _repr(tuple(args))
        kwargsrepr = options.pop("kwargsrepr", None) or _repr(kwargs)
        if not options.keys() <= _BUILDER_OPTIONS:
            options["properties"] = {
                key: options.pop(key) for key in list(options) if key not in _BUILDER_OPTIONS
            }
        args_json, kwargs_json = dumps(args), dumps(kwargs)
        builder = self._builders.get(name)
        if builder is None:
            builder = self._builders[name] = TaskMessageBuilder(name, origin=self._origin)
        message = builder.build(
            task_id,
            args_json=args_json,
            kwargs_json=kwargs_json,
            argsrepr=argsrepr,
            kwargsrepr=kwargsrepr,
            eta=eta,
            expires=expires,
            expiration=None if expires_at is None else max(0.0, expires_at - now),
            retries=retries,
            root_id=root_id,
            parent_id=parent_id,
            group_id=group_id,
            priority=priority,
            stamps=stamps,
            reply_to=reply_to,
            **embed,
            **options,
        )
        publication = Publication(
            message, queue, task_id, "", queue, priority or 0, due if due and due > now else None
        )
        record = Transition(
            task_id=task_id,
            state="PENDING",
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
        return Call(name, publication, record, (args, kwargs, embed))

    def _inherit(
        self, root_id: str | None, parent_id: str | None, priority: int | None
    ) -> tuple[str | None, str | None, int | None]:
        """A task that is called while another runs is its child, as in Celery."""
        execution = current_execution()
        if execution is not None:
            request = execution.request
            root_id = root_id or request.root_id or request.id
            parent_id = parent_id or request.id
            if priority is None and self._app.conf.task_inherit_parent_priority:
                priority = (request.delivery_info or {}).get("priority")
        if priority is None:
            priority = self._app.conf.task_default_priority
        return root_id, parent_id, priority


def planned(embed: Mapping[str, Any], *, root_id: str, at: float) -> list[Transition]:
    """Records for the tasks that a message already names, but that are published later: its chain and its chord's body.

    Without them the end of a chain, whose handle the caller has, would be an unknown id until its turn comes.
    """
    signatures = [*(embed.get("chain") or ()), *([embed["chord"]] if embed.get("chord") else ())]
    found = []
    for signature in signatures:
        task_id = (signature.get("options") or {}).get("task_id")
        if task_id:
            name = None if signature.get("subtask_type") else signature.get("task")
            found.append(Transition(task_id=task_id, state="PENDING", at=at, name=name, root_id=root_id))
    return found


def _with_task_defaults(task: Any, options: dict[str, Any]) -> dict[str, Any]:
    if task is None:
        return {key: value for key, value in options.items() if value is not None}
    defaults = task.call_defaults if hasattr(task, "call_defaults") else task._get_exec_options()
    return {key: value for key, value in {**defaults, **options}.items() if value is not None}


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


def _listed(value: Any) -> Any:
    return value if value is None or isinstance(value, (list, tuple)) else [value]


def _repr(value: Any) -> str:
    """Celery's ``saferepr``, which costs twenty times as much as ``repr`` and differs only for what is not plain."""
    items = value.values() if isinstance(value, dict) else value
    if all(type(item) in _PLAIN_TYPES for item in items):
        return repr(value)
    return str(saferepr(value, 1024))
