"""Where calls go: Celery's router, and what Celery's publishing makes of the queue, exchange and routing key it gets.

``celery.app.base.Celery.send_task`` and ``celery.app.amqp.AMQP._create_task_sender`` decide; this follows them. What is
the same for every call of a task is worked out once. See
https://docs.celeryq.dev/en/stable/userguide/routing.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from celery.app.routes import MapRoute
from kombu.common import Broadcast
from kombu.entity import Exchange, Queue, maybe_delivery_mode
from kombu.transport.base import to_rabbitmq_queue_arguments

from celeriac.compat import evaluated
from celeriac.protocol.exchanges import Arguments, Binding, ExchangeOptions, QueueFlags, binding

__all__ = [
    "Destination",
    "NotNative",
    "RouteTable",
    "bindings_of",
    "queue_arguments",
    "queue_flags",
    "recorded_queue",
]

#: Options that say how Celery publishes, not what; ours has one way.
_IGNORED_OPTIONS = frozenset(
    {
        "add_to_parent",
        "confirm_timeout",
        "connection",
        "declare",
        "immediate",
        "mandatory",
        "producer",
        "publisher",
        "result_cls",
        "retry",
        "retry_policy",
        "route_name",
        "router",
        "task_type",
        "timeout",
    }
)

_PLACES = ("exchange", "routing_key", "exchange_type", "delivery_mode")

#: Options that keep a call from the route that calls of its task usually take, or from being ours to publish.
_UNUSUAL = frozenset({"connection", "declare", "producer", "publisher", "route_name", "router", "task_type"})

#: Queues and routes that are remembered; callers may make up names of queues.
_MOST_KNOWN = 4096


class NotNative(Exception):
    """The call asks for something that Celery's own publishing has to do."""


class Destination(NamedTuple):
    """Where messages go.

    ``queue`` is empty where the exchange decides, by its bindings: those of the server, and ``bindings``, which the
    app knows. ``recorded`` is the queue as the task's record names it.
    """

    queue: str
    routing_key: str
    exchange: str = ""
    exchange_type: str = "direct"
    bindings: tuple[Binding, ...] = ()
    recorded: str = ""
    delivery_mode: int = 2


class _Route(NamedTuple):
    """What calls of a task start from: what its route says, what the task itself says, and both together."""

    queue: Queue | None
    routed: Mapping[str, Any]
    defaults: Mapping[str, Any]
    options: Mapping[str, Any]
    destination: Destination
    #: Whether there is more to the place than the queue.
    placed: bool


class RouteTable:
    """The routes of one app's tasks."""

    def __init__(self, app: Any) -> None:
        self._app = app
        conf = app.conf
        self._conf = conf
        self._stubs: Mapping[str, Any] = getattr(app, "_stubs", {})
        self._fallbacks = {"serializer": conf.task_serializer, "compression": conf.task_compression}
        self._known: dict[tuple[str, Any], _Route] = {}
        self._write_url: str | None = None

    def find(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> tuple[Destination, dict[str, Any]]:
        """Where a call of a task goes, and its options besides: the call's, else the task's, else the route's.

        Raises NotNative, and ``celery.exceptions.QueueNotFound``.
        """
        queue = options.get("queue")
        route = self._known.get((name, queue))
        if route is not None and not options:
            return route.destination, dict(route.options)
        if route is None or not options.keys().isdisjoint(_UNUSUAL):
            self._refuse_foreign(name, options)
            if not self._is_usual(name, options):
                return self._find_anew(name, args, kwargs, options)
            route = route or self._look_up(name, queue)
        if not options:
            return route.destination, dict(route.options)
        # None takes away what the task says itself, but not what its route says.
        merged = {**self._fallbacks, **route.routed, **_given({**route.defaults, **options})}
        merged.pop("queue", None)
        if route.placed or any(options.get(place) is not None for place in _PLACES):
            return self._destination(name, route.queue, merged), merged
        return route.destination, merged

    def _is_usual(self, name: str, options: Mapping[str, Any]) -> bool:
        if options.get("router") is not None or options.get("route_name") is not None:
            return False
        task = options.get("task_type")
        if task is not None and task is not self._task(name):
            return False
        # A route that is a function may answer differently for other arguments.
        return all(isinstance(route, MapRoute) for route in self._app.amqp.routes)

    def _task(self, name: str) -> Any:
        return self._app._tasks.get(name) or evaluated(self._stubs.get(name))

    def _look_up(self, name: str, queue: Any) -> _Route:
        """The route of a task's calls, the same for all; remembered."""
        app = self._app
        task = self._task(name)
        defaults = _defaults_of(task)
        own_queue = defaults.pop("queue", None)
        asked = own_queue if queue is None else queue
        routed = app.amqp.router.route({} if asked is None else {"queue": asked}, name, (), {}, task)
        chosen = routed.pop("queue", None)
        options = {**self._fallbacks, **_given(routed), **defaults}
        placed = not options.keys().isdisjoint(_PLACES)
        destination = self._destination(name, chosen, options)
        plain = {key: value for key, value in options.items() if _matters(key, value)}
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        route = self._known[name, queue] = _Route(
            chosen, _given(routed), defaults, plain, destination, placed
        )
        return route

    def _find_anew(
        self, name: str, args: Any, kwargs: Any, options: Mapping[str, Any]
    ) -> tuple[Destination, dict[str, Any]]:
        """For what may differ from call to call: routes that are functions, ``router``, ``route_name``."""
        task = options.get("task_type")
        # ``apply_async`` has put the task's own options among the call's already.
        defaults = {} if task is not None else _defaults_of(task := self._task(name))
        router = options.get("router") or self._app.amqp.router
        given = {key: value for key, value in {**defaults, **options}.items() if key not in _IGNORED_OPTIONS}
        routed = router.route(given, options.get("route_name") or name, args, kwargs, task)
        queue = routed.pop("queue", None)
        merged = {**self._fallbacks, **_given(routed)}
        return self._destination(name, queue, merged), merged

    def _destination(self, name: str, queue: Any, options: dict[str, Any]) -> Destination:
        """Take queue, exchange, routing key and delivery mode out of the options, as Celery's publishing does."""
        exchange, key, kind, mode = (options.pop(place, None) for place in _PLACES)
        amqp = self._app.amqp
        if queue is None and exchange is None:
            queue = amqp.default_queue
        if isinstance(queue, str):
            queue = amqp.queues[queue]
        own = queue.exchange if queue is not None else None
        mode = maybe_delivery_mode(
            mode or getattr(own, "delivery_mode", None) or self._conf.task_default_delivery_mode
        )
        kind = kind or getattr(own, "type", None) or "direct"
        exchange = _name(exchange)
        if (not exchange or not key) and kind == "direct":
            if queue is None:
                raise NotNative(name)  # an exchange without a routing key
            return Destination(queue.name, queue.name, recorded=queue.name, delivery_mode=mode)
        if exchange is None:
            exchange = own.name if own is not None and own.name else amqp.default_exchange.name
            key = key or queue.routing_key or self._conf.task_default_routing_key
        kind, bindings = self._bindings(exchange, kind, queue)
        recorded = recorded_queue(queue, exchange, key or "")
        return Destination("", key or "", exchange, kind, bindings, recorded, mode)

    def _bindings(self, exchange: str, kind: str, queue: Any) -> tuple[str, tuple[Binding, ...]]:
        """The exchange's type and its bindings, as far as this app knows: its queues', not what others have bound."""
        declared = [queue] if queue is not None and not isinstance(queue, Broadcast) else []
        queues = [*self._app.amqp.queues.values(), *([] if queue is None else [queue])]
        known = [each for each in queues if not isinstance(each, Broadcast)]
        kinds = {each.exchange.name: each.exchange.type for each in queues if each.exchange}
        kind = kinds.get(exchange) or kind
        # To whom a message to all is sent is known when they are there, not before.
        sources = declared if kind == "fanout" else known
        found = (bound for each in sources for bound in bindings_of(each) if bound.exchange == exchange)
        return kind, tuple(dict.fromkeys(found))

    def _refuse_foreign(self, name: str, options: Mapping[str, Any]) -> None:
        """Raise NotNative for what is to travel by another connection than the app's."""
        if options.get("connection") is not None or options.get("declare") is not None:
            raise NotNative(name)
        producer = options.get("producer") or options.get("publisher")
        connection = getattr(producer, "__connection__", None)
        if connection is None:
            return
        if self._write_url is None:
            self._write_url = str(self._app.connection_for_write().as_uri())
        if connection.as_uri() != self._write_url:
            raise NotNative(name)


def bindings_of(queue: Queue) -> list[Binding]:
    """The bindings that declaring a queue makes."""
    exchange = queue.exchange
    bindings = []
    if exchange is not None and exchange.name:
        bindings.append(_binding(exchange, queue.routing_key, queue, queue.binding_arguments))  # type: ignore[attr-defined]
    for each in queue.bindings or ():
        bindings.append(_binding(each.exchange, each.routing_key, queue, each.arguments))
    return bindings


def _binding(
    exchange: Exchange, key: str | None, queue: Queue, arguments: Mapping[str, Any] | None
) -> Binding:
    options = ExchangeOptions(
        durable=bool(exchange.durable),
        auto_delete=bool(exchange.auto_delete),
        arguments=Arguments(exchange.arguments or {}),  # type: ignore[attr-defined]
        declared=not (exchange.no_declare or exchange.passive),
    )
    return binding(exchange.name, exchange.type or "direct", key or "", queue.name, arguments, options)


def queue_arguments(app: Any, name: str) -> dict[str, Any]:
    """The arguments with which Celery declares a queue in RabbitMQ: those of ``task_queues``, or of a missing queue."""
    queues = app.amqp.queues
    queue = queues.get(name)
    if queue is None:
        queue = queues.new_missing(name)
        if queues.max_priority is not None:
            queue.max_priority = queues.max_priority
    return dict(
        to_rabbitmq_queue_arguments(
            queue.queue_arguments or {},
            expires=queue.expires,
            message_ttl=queue.message_ttl,
            max_length=queue.max_length,
            max_length_bytes=queue.max_length_bytes,
            max_priority=queue.max_priority,
        )
    )


def queue_flags(app: Any, name: str) -> QueueFlags:
    """How Celery declares a queue in RabbitMQ, besides its arguments.

    Not as an exclusive one: publishing and consuming have a connection each.
    """
    queue = app.amqp.queues.get(name)
    if queue is None:
        return QueueFlags()
    return QueueFlags(bool(queue.durable), bool(queue.auto_delete), not queue.no_declare)


def recorded_queue(queue: Any, exchange: Any, routing_key: str) -> str:
    """The queue that a record names: the routing key, where an exchange other than the queue's decides."""
    exchange = _name(exchange)
    if isinstance(queue, str):
        return queue
    if queue is None or (exchange and routing_key and queue.exchange and queue.exchange.name != exchange):
        return routing_key
    return str(queue.name)


def _name(exchange: Any) -> str | None:
    return exchange.name if isinstance(exchange, Exchange) else exchange


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None and key not in _IGNORED_OPTIONS}


def _matters(key: str, value: Any) -> bool:
    return value is not None and not (key == "serializer" and value == "json")


def _defaults_of(task: Any) -> dict[str, Any]:
    """The options that the calls of a task start from."""
    if task is None:
        return {}
    if hasattr(task, "call_defaults"):
        defaults = task.call_defaults
    else:
        defaults = {**task._get_exec_options(), "ignore_result": task.ignore_result}
    return _given(defaults)
