"""The app: a ``celery.Celery`` that also publishes, waits and serves without blocking the event loop."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeVar, cast, overload

import celery
from celery.canvas import Signature
from celery.exceptions import AlwaysEagerIgnored
from kombu.utils.imports import symbol_by_name
from kombu.utils.objects import cached_property

from celeriac import compat, config
from celeriac.arguments import ArgumentSchema
from celeriac.brokers.base import Broker
from celeriac.calls import Call, NotNative, new_id
from celeriac.canvas import enqueue_canvas
from celeriac.connection import Connection, Connections
from celeriac.context import context_parameters
from celeriac.eager import runs_eagerly
from celeriac.errors import ConfigurationError, PublishTimeout
from celeriac.handle import TaskHandle
from celeriac.maps import define_maps
from celeriac.planning import NoProducer, active_plan
from celeriac.redis.urls import celery_url
from celeriac.stores.base import Store
from celeriac.stores.records import TaskRecord, Transition
from celeriac.task import BoundTaskDecorator, Task, TaskDecorator

if TYPE_CHECKING:
    from fastapi import APIRouter, FastAPI

__all__ = ["Celery"]

P = ParamSpec("P")
R = TypeVar("R")


def _accept_anything(*_args: Any, **_kwargs: Any) -> None:
    """Instead of a function's own head, where calls leave out some of its parameters."""


# From here on kombu knows ``sqlite://``; it imports the transport itself when it is used.
symbol_by_name("celeriac.transports:register")()


class Celery(celery.Celery):  # type: ignore[misc]
    """A Celery application for asyncio and FastAPI.

    Takes what ``celery.Celery`` takes: a name, ``broker``, ``backend``, ``include``, … Without a broker, and without
    ``CELERY_BROKER_URL``, everything lives in ``celery.db``, a SQLite file in the current folder.
    """

    task_cls = "celeriac.task:Task"
    amqp_cls = "celeriac.synchronous:RecordingAMQP"
    control_cls = "celeriac.synchronous:DurableControl"

    def __init__(self, main: str | None = None, **options: Any) -> None:
        self._connections = Connections(self)
        super().__init__(main, **options)
        self.on_after_finalize.connect(define_maps)

    def _load_config(self) -> Any:
        conf = super()._load_config()
        asked, chosen = config.asked_broker(conf), config.asked_backend(conf)
        compat.set_defaults(conf, config.CELERY_DEFAULTS | config.OWN_DEFAULTS)
        if asked is not None and asked != conf.broker_url:
            conf.broker_url = asked
        if chosen != (conf.result_backend or None):
            conf.result_backend = chosen
        broker_url = conf.broker_url
        defaults: dict[str, Any] = {
            "result_backend": config.default_backend(broker_url),
            **config.default_backend_options(conf, chosen),
        }
        if broker_url.startswith("memory:"):
            defaults["broker_transport"] = "celeriac-memory"
        if scheduler := config.default_scheduler(broker_url):
            defaults["beat_scheduler"] = scheduler
        compat.set_defaults(conf, defaults)
        return conf

    def _connection(self, url: str, **options: Any) -> Any:
        if url.startswith(("sqlite:", "memory:")):
            settings = self.settings
            own = {"visibility_timeout": settings.lease, "delivery_limit": settings.delivery_limit}
            passed = options.get("transport_options") or {}
            options["transport_options"] = {**own, **settings.transport_options, **passed}
        return super()._connection(celery_url(url), **options)

    def _get_backend(self) -> Any:
        # Only for this app: a stock app in the same process keeps Celery's own.
        loader = self.loader
        loader.override_backends = {**config.REDIS_BACKENDS, **loader.override_backends}
        return super()._get_backend()

    @cached_property
    def settings(self) -> config.Settings:
        """What celeriac has read from the configuration, validated. Raises ConfigurationError."""
        return config.Settings.from_conf(self.conf)

    # -- tasks ---------------------------------------------------------------------------------------------------

    @overload
    def task(self, *, bind: Literal[True], **options: Any) -> BoundTaskDecorator: ...
    @overload
    def task(self, *, bind: Literal[False] = ..., **options: Any) -> TaskDecorator: ...
    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def task(self, function: Callable[P, AsyncGenerator[Any, Any]], /) -> Task[P, None]: ...
    @overload
    def task(self, function: Callable[P, AsyncIterator[Any]], /) -> Task[P, None]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...

    def task(self, *args: Any, **options: Any) -> Any:
        """Make a task of a function: ``def``, ``async def``, or an async generator, which emits what it yields.

        Options are Celery's. ``bind=True`` passes the task as the first argument. Unlike Celery's, the task belongs
        to this app alone (``shared=False``).
        """
        options.setdefault("shared", False)
        return super().task(*args, **options)

    def type_checker(self, fun: Callable[..., Any], bound: bool = False) -> Any:
        """What Celery checks the arguments of a call with; parameters that the worker fills in are no part of it."""
        if context_parameters(fun):
            return staticmethod(_accept_anything)  # the task's schema has checked them
        return super().type_checker(fun, bound=bound)

    # -- publishing ----------------------------------------------------------------------------------------------

    async def enqueue(
        self,
        task: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> TaskHandle[Any]:
        """Publish a task by name, or a signature, without importing the task.

        ``task`` is a name, a signature (``add.s(1, 2)``, a chain, a group, a chord) or a
        task. Options are those of ``task.using``. Arguments are validated where this process has the task.
        Raises InvalidArguments, BrokerUnavailable, PublishTimeout.
        """
        if isinstance(task, Signature):
            if not compat.is_plain_signature(task):
                return await enqueue_canvas(self, task, args, kwargs or {}, options)
            name, args, kwargs, options = compat.merge_signature(task, args, kwargs, options)
        else:
            name = task if isinstance(task, str) else task.name
        registered = self._registered(name)
        args, kwargs = self._prepare(registered, args, kwargs or {}, options)
        if await runs_eagerly(self):
            if not isinstance(task, str) and isinstance(registered, Task):
                return await registered.run_eagerly(args, kwargs, options)
            warnings.warn(
                AlwaysEagerIgnored("task_always_eager has no effect on tasks by name"), stacklevel=2
            )
        return await self.submit(name, args, kwargs, options, registered)

    async def enqueue_many(
        self, signatures: Sequence[Any], *, deadline: float | None = None
    ) -> list[TaskHandle[Any]]:
        """Publish many signatures in one step of the broker, all or none.

        ``deadline`` is in seconds. Raises as ``enqueue`` does, which also publishes canvas.
        """
        if await runs_eagerly(self):
            return [await self.enqueue(signature) for signature in signatures]
        connection = await self._connections.here()
        calls: list[Call] = []
        handles: list[TaskHandle[Any]] = []
        for signature in signatures:
            if not compat.is_plain_signature(signature):
                raise ConfigurationError(
                    f"enqueue_many publishes single tasks; use enqueue for {signature!r}."
                )
            name, raw_args, raw_kwargs, options = compat.merge_signature(signature, (), None, {})
            registered = self._registered(name)
            args, kwargs = self._prepare(registered, raw_args, raw_kwargs, options)
            try:
                call = connection.calls.build(name, args, kwargs, options)
            except NotNative:
                raise ConfigurationError(
                    f"enqueue_many cannot publish {name} by a connection of its own, nor by protocol 1; use enqueue."
                ) from None
            calls.append(call)
            handles.append(self._handle(call.task_id, registered))
        await connection.publisher.publish_many(calls, deadline)
        return handles

    async def submit(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: dict[str, Any],
        task: Any = None,
    ) -> TaskHandle[Any]:
        """Publish a call whose arguments are what its serializer takes; what ``task.enqueue`` ends in."""
        connection = self._connections.current() or await self._connections.here()
        deadline = options.pop("deadline", None)
        try:
            call = connection.calls.build(name, args, kwargs, options)
        except NotNative:
            return await self._send_synchronously(name, args, kwargs, options, deadline, task)
        await connection.publisher.publish(call, deadline)
        if options.get("add_to_parent", True):
            compat.trail(call.task_id)
        return self._handle(call.task_id, task)

    async def _send_synchronously(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: dict[str, Any],
        deadline: float | None,
        task: Any,
    ) -> TaskHandle[Any]:
        """Publish by Celery's own code, in a thread, what asks for a connection of its own, or for protocol 1."""
        owner = options.pop("owner", None)
        limit = self.settings.publish_deadline if deadline is None else deadline
        try:
            async with asyncio.timeout(limit):
                result = await asyncio.to_thread(self.send_task, name, args, kwargs, **options)
        except TimeoutError:
            raise PublishTimeout(
                f"The broker did not confirm within {limit:g} seconds; the task may or may not have been enqueued."
            ) from None
        if owner is not None:
            await self.store.transition(
                [Transition(task_id=result.id, state="PENDING", at=time.time(), owner=owner)]
            )
        return self._handle(result.id, task)

    def send_task(self, name: str, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """Celery's synchronous publish. In a task's coroutine it does not block: the worker publishes natively, and
        the task does not end before the broker has confirmed."""
        plan = active_plan()
        if plan is None:
            return super().send_task(name, args, kwargs, *more, **options)
        options.update(zip(compat.SEND_TASK_OPTIONS, more, strict=False))
        task_id = options["task_id"] = options.get("task_id") or new_id()
        make_result = options.pop("result_cls", None) or self.AsyncResult
        if isinstance(options.get("producer"), NoProducer):
            del options["producer"]
        if plan.app is self:
            plan.call(name, args or (), kwargs or {}, options, super().send_task)
        else:  # the task's worker has no connection to this app's servers
            plan.foreign.append(partial(super().send_task, name, args, kwargs, **options))
        result = make_result(task_id)
        result.ignored = bool(options.get("ignore_result"))
        if options.get("add_to_parent", True):
            compat.trail(task_id)
        return result

    def producer_or_acquire(self, producer: Any = None) -> Any:
        """Celery's; while a plan is made, nobody needs a connection."""
        plan, acquire = active_plan(), partial(super().producer_or_acquire, producer)
        return acquire() if plan is None else NoProducer(plan, acquire)

    async def replay(self, record: TaskRecord) -> TaskHandle[Any]:
        """Enqueue a task that has ended once more, under the same id, with the arguments of its record.

        Raises ConfigurationError when the record does not say what to run.
        """
        if record.name is None or record.args is None:
            raise ConfigurationError(f"The record of {record.id} has no name or arguments to run it with.")
        connection = await self._connections.here()
        options: dict[str, Any] = {
            "task_id": record.id,
            "queue": record.queue,
            "root_id": record.root_id,
            "parent_id": record.parent_id,
            "owner": record.owner,
        }
        call = connection.calls.build(record.name, record.args, record.kwargs or {}, options)
        await connection.publisher.replay(call, record)
        return self._handle(record.id)

    def _registered(self, name: str) -> Any:
        self.finalize(auto=True)
        return self._tasks.get(name)

    @staticmethod
    def _prepare(
        task: Any, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> tuple[Sequence[Any], Mapping[str, Any]]:
        if isinstance(task, Task) and task.typing:
            schema: ArgumentSchema = task.schema
            return schema.prepare(tuple(args), dict(kwargs), options.get("serializer") or task.serializer)
        return args, kwargs

    # -- looking -------------------------------------------------------------------------------------------------

    def handle(self, task_id: str) -> TaskHandle[Any]:
        """A handle on the task of this id. Whether there is one shows when it is used."""
        return self._handle(task_id)

    def _handle(self, task_id: str, task: Any = None) -> TaskHandle[Any]:
        schema: ArgumentSchema | None = task.schema if isinstance(task, Task) else None
        return TaskHandle(task_id, lambda: self.store, schema.load_result if schema else None)

    async def queue_size(self, name: str) -> int:
        """How many messages wait in a queue; delayed ones and those being worked on are not counted."""
        return await (await self._connections.here()).broker.size(name)

    async def purge(self, name: str) -> int:
        """Delete what waits in a queue, delayed messages too. Returns how many there were."""
        return await (await self._connections.here()).broker.purge(name)

    @property
    def store(self) -> Store:
        """The store of the running loop. Raises ConfigurationError outside ``async with celery:``."""
        return self._opened().store

    @property
    def broker(self) -> Broker:
        """The broker of the running loop. Raises ConfigurationError outside ``async with celery:``."""
        return self._opened().broker

    def _opened(self) -> Connection:
        connection = self._connections.current()
        if connection is None:
            raise ConfigurationError(
                "celeriac is not open on this event loop: "
                "use `async with celery:`, or FastAPI(lifespan=celery.lifespan)."
            )
        return connection

    # -- lifetime ------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self._connections.enter()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._connections.leave()

    def lifespan(self, app: Any) -> AbstractAsyncContextManager[Any]:
        """An ASGI lifespan: ``FastAPI(lifespan=celery.lifespan)`` opens and closes broker and store."""
        return cast("AbstractAsyncContextManager[Any]", self.lifespan_with()(app))

    def lifespan_with(
        self, inner: Callable[..., Any] | None = None, *, worker: bool = False
    ) -> Callable[..., Any]:
        """A lifespan that runs yours inside. With ``worker=True`` a worker runs in the API's process and loop."""
        compose = symbol_by_name("celeriac.fastapi.lifespan:compose")
        return cast("Callable[..., Any]", compose(self, inner, worker=worker))

    def router(
        self,
        *,
        dependencies: Sequence[Any] | None = None,
        owner: Any = None,
        insecure: bool = False,
        tags: Sequence[str] = ("tasks",),
        include_traceback: bool = False,
        heartbeat: float = 15.0,
        longest_wait: float = 60.0,
    ) -> APIRouter:
        """An ``APIRouter`` over the records: get, list, result, events (SSE), cancel, retry.

        ``dependencies`` and ``owner`` are FastAPI's ``Depends(…)``: the first guard every route, the second tells
        whose tasks a caller may see. Cancel and retry answer 403 unless one of them is given, or ``insecure=True``.
        ``heartbeat`` and ``longest_wait`` (of ``?wait=``) are seconds.
        """
        build = symbol_by_name("celeriac.fastapi.router:build_router")
        router = build(
            self,
            dependencies=dependencies,
            owner=owner,
            insecure=insecure,
            tags=tags,
            include_traceback=include_traceback,
            heartbeat=heartbeat,
            longest_wait=longest_wait,
        )
        return cast("APIRouter", router)

    def install(self, app: FastAPI) -> None:
        """Add exception handlers: a broker or store that is gone is a 503, wrong arguments are a 422, no 500."""
        symbol_by_name("celeriac.fastapi.errors:install")(self, app)

    # -- the worker ----------------------------------------------------------------------------------------------

    @cached_property
    def Worker(self) -> Any:  # noqa: N802 - Celery's name
        """The program behind ``celery worker``."""
        return self.subclass_with_self("celeriac.worker.program:Worker")

    @cached_property
    def Beat(self) -> Any:  # noqa: N802 - Celery's name
        """The program behind ``celery beat``."""
        return self.subclass_with_self("celeriac.scheduler.program:Beat")

    @cached_property
    def EmbeddedWorker(self) -> Any:  # noqa: N802 - beside Worker
        """Celery's ``WorkController``, of which a worker inside the API's process is one."""
        return self.subclass_with_self("celery.worker:WorkController", name="EmbeddedWorker")
