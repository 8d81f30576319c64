"""The app's ways to publish: ``enqueue`` and its kin, and Celery's ``send_task``, which does not block a coroutine."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import celery
from celery.canvas import Signature
from celery.exceptions import AlwaysEagerIgnored
from kombu.utils.objects import cached_property

from celeriac import blocking, compat
from celeriac.arguments import ArgumentSchema
from celeriac.calls import Call, NotNative, new_id
from celeriac.canvas import enqueue_canvas
from celeriac.connection import Connections
from celeriac.eager import runs_eagerly
from celeriac.errors import ConfigurationError, PublishTimeout, UploadGone
from celeriac.files import pending_in, refuse_open_files
from celeriac.handle import TaskHandle
from celeriac.opening import wanted
from celeriac.planning import NoProducer, active_plan
from celeriac.propagation import Propagation
from celeriac.stores.base import Store
from celeriac.stores.records import TaskRecord
from celeriac.task import Task
from celeriac.uploads.reference import PendingUpload
from celeriac.uploads.storage import Spooled

if TYPE_CHECKING:
    from celeriac.config import Settings
    from celeriac.uploads.storage import Storage

__all__ = ["Enqueues"]


class Enqueues(celery.Celery):  # type: ignore[misc]
    """The part of the app that publishes; what it needs of the rest stands on top."""

    _connections: Connections
    _stubs: dict[str, Any]

    if TYPE_CHECKING:

        @property
        def settings(self) -> Settings: ...
        @property
        def store(self) -> Store: ...
        @property
        def uploads(self) -> Storage: ...

    @cached_property
    def propagation(self) -> Propagation:
        """What travels with this app's tasks besides their arguments. Raises ConfigurationError."""
        return Propagation(self.settings.propagate)

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
        return await self.submit(name, args, kwargs, options, registered, _files(registered, args, kwargs))

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
        files: list[Spooled] = []
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
            files += [(call.task_id, each) for each in _files(registered, args, kwargs)]
            handles.append(self._handle(call.task_id, registered))
        async with self.uploads.holding(files) if files else nullcontext():
            await connection.publisher.publish_many(calls, deadline)
        return handles

    async def submit(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: dict[str, Any],
        task: Any = None,
        files: Sequence[PendingUpload] = (),
    ) -> TaskHandle[Any]:
        """Publish a call whose arguments are what its serializer takes; what ``task.enqueue`` ends in.

        ``files`` are those among the arguments whose content is to be stored before.
        """
        connection = self._connections.current() or await self._connections.here()
        deadline = options.pop("deadline", None)
        try:
            call = connection.calls.build(name, args, kwargs, options)
        except NotNative:
            if files:
                refuse_open_files(name, args, kwargs)
            return await self._send_synchronously(name, args, kwargs, options, deadline, task)
        if files:
            async with self.uploads.holding([(call.task_id, each) for each in files]):
                await connection.publisher.publish(call, deadline)
        else:
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
        limit = self.settings.publish_deadline if deadline is None else deadline
        try:
            async with asyncio.timeout(limit):
                result = await asyncio.to_thread(self.send_task, name, args, kwargs, **options)
        except TimeoutError:
            raise PublishTimeout(
                f"The broker did not confirm within {limit:g} seconds; the task may or may not have been enqueued."
            ) from None
        return self._handle(result.id, task)

    def send_task(self, name: str, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """Celery's synchronous publish. In a task's coroutine it does not block: the worker publishes natively, and
        the task does not end before the broker has confirmed."""
        plan = active_plan()
        if plan is None:
            if asyncio._get_running_loop() is not None and not self.settings.broker_url.startswith("memory:"):
                blocking.warn(name)
            return self._send(name, args, kwargs, *more, **options)
        options.update(zip(compat.SEND_TASK_OPTIONS, more, strict=False))
        task_id = options["task_id"] = options.get("task_id") or new_id()
        make_result = options.pop("result_cls", None) or self.AsyncResult
        if isinstance(options.get("producer"), NoProducer):
            del options["producer"]
        if plan.app is self:
            plan.call(name, args or (), kwargs or {}, options, self._send)
        else:  # the task's worker has no connection to this app's servers
            plan.foreign.append(partial(self._send, name, args, kwargs, **options))
        result = make_result(task_id)
        result.ignored = bool(options.get("ignore_result"))
        if options.get("add_to_parent", True):
            compat.trail(task_id)
        return result

    def _send(self, name: str, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """Publish by Celery's own code, with what travels with a task."""
        self.propagation.add(options)
        return super().send_task(name, args, kwargs, *more, **options)

    def producer_or_acquire(self, producer: Any = None) -> Any:
        """Celery's; while a plan is made, nobody needs a connection."""
        plan, acquire = active_plan(), partial(super().producer_or_acquire, producer)
        return acquire() if plan is None else NoProducer(plan, acquire)

    async def replay(self, record: TaskRecord) -> TaskHandle[Any]:
        """Enqueue a task that has ended once more, under the same id, with the arguments of its record.

        Raises ConfigurationError when the record does not say what to run, and UploadGone when it was sent files, which
        are deleted after the last attempt.
        """
        if record.name is None or record.args is None:
            raise ConfigurationError(f"The record of {record.id} has no name or arguments to run it with.")
        await self._require_files(record)
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

    async def _require_files(self, record: TaskRecord) -> None:
        task = self._registered(record.name or "")
        if isinstance(task, Task) and task.schema.takes_files:
            found = wanted(task.schema, record.args or (), record.kwargs or {})
            missing = await self.uploads.missing(record.id, found) if found else ()
            if missing:
                raise UploadGone(
                    f"The task cannot run again: its upload {missing[0].filename or missing[0].key!r} was deleted"
                    " after its last attempt."
                )

    def _registered(self, name: str) -> Any:
        self.finalize(auto=True)
        return self._tasks.get(name) or compat.evaluated(self._stubs.get(name))

    @staticmethod
    def _prepare(
        task: Any, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> tuple[Sequence[Any], Mapping[str, Any]]:
        if isinstance(task, Task) and task.typing:
            schema: ArgumentSchema = task.schema
            return schema.prepare(tuple(args), dict(kwargs), options.get("serializer") or task.serializer)
        return args, kwargs

    def _handle(self, task_id: str, task: Any = None) -> TaskHandle[Any]:
        schema: ArgumentSchema | None = task.schema if isinstance(task, Task) else None
        return TaskHandle(task_id, lambda: self.store, schema.load_result if schema else None)


def _files(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[PendingUpload]:
    """The files in a call of a task that this process has."""
    if isinstance(task, Task) and task.typing and task.schema.takes_files:
        return pending_in(args, kwargs)
    return ()
