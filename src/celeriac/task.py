"""The task: Celery's, with a typed ``enqueue``. Does no I/O of its own."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    ParamSpec,
    TypedDict,
    TypeVar,
    cast,
)

from celery.app.task import Task as CeleryTask
from celery.canvas import Signature

from celeriac.arguments import ArgumentSchema
from celeriac.autoretry import retries, retries_itself, retrying
from celeriac.calls import new_id
from celeriac.compat import (
    RequestStack,
    current_execution,
    enter_eager_call,
    leave_execution,
    refuse_cancelled,
)
from celeriac.context import TaskContext
from celeriac.dependencies import Injected, injected_parameters
from celeriac.dependency_scope import DependencyScope
from celeriac.eager import EagerExecution, EagerHandle, awaited, run_apart, run_to_end, runs_eagerly
from celeriac.files import pending_in, refuse_open_files
from celeriac.handle import TaskHandle
from celeriac.injected_calls import call_here, is_asynchronous
from celeriac.opening import opened_here
from celeriac.propagation import owned

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["EnqueueOptions", "PendingCall", "Task"]

P = ParamSpec("P")
R = TypeVar("R")

#: What a task class may do around its function.
_HANDLERS = ("before_start", "on_success", "on_failure", "on_retry", "after_return")


class EnqueueOptions(TypedDict, total=False):
    """What ``task.using`` takes: Celery's options of ``apply_async``, and ``owner`` and ``deadline``.

    Durations are seconds or timedeltas. ``deadline`` is how long ``enqueue`` may take, in seconds; ``owner`` is kept
    in the record; ``priority`` is 0 to 9, higher first.
    """

    countdown: float | timedelta | None
    eta: datetime | None
    expires: float | timedelta | datetime | None
    queue: str | None
    priority: int | None
    task_id: str | None
    headers: Mapping[str, Any] | None
    owner: str | None
    deadline: float | None
    link: Any
    link_error: Any
    time_limit: float | None
    soft_time_limit: float | None
    ignore_result: bool | None
    shadow: str | None
    serializer: str | None
    compression: str | None
    exchange: str | None
    routing_key: str | None
    reply_to: str | None
    root_id: str | None
    parent_id: str | None
    group_id: str | None


class PendingCall(Generic[P, R]):
    """A task together with options: what ``task.using(…)`` returns."""

    __slots__ = ("_options", "_task")

    def __init__(self, task: Task[P, R], options: EnqueueOptions) -> None:
        self._task = task
        self._options = options

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """As ``task.enqueue``, with the options."""
        return await self._task._enqueue(args, kwargs, cast("dict[str, Any]", dict(self._options)))


class Task(CeleryTask, Generic[P, R]):  # type: ignore[misc]
    """A task: Celery's, typed.

    Everything that Celery documents for tasks holds; see Celery's user guide.
    """

    abstract = True
    #: For Celery's own pools.
    Request = "celeriac.worker.children:Request"
    _schema: ArgumentSchema | None = None
    _injected: Injected | None = None

    if TYPE_CHECKING:
        # Celery has no annotations; these are what a task's user meets.
        name: str
        max_retries: int | None
        default_retry_delay: float
        serializer: str

        @property
        def request(self) -> Any:
            """Celery's ``task.request``: id, args, retries, delivery_info, …"""

        def delay(self, *args: P.args, **kwargs: P.kwargs) -> Any:
            """Celery's synchronous publish; returns its ``AsyncResult``."""

        def s(self, *args: Any, **kwargs: Any) -> Any:
            """A signature of this task, for canvas."""

        def si(self, *args: Any, **kwargs: Any) -> Any:
            """A signature that takes no result of the task before it."""

        def signature(self, args: Any = None, *starargs: Any, **starkwargs: Any) -> Any:
            """A signature with options."""

        def retry(
            self,
            args: Any = None,
            kwargs: Any = None,
            exc: BaseException | None = None,
            throw: bool = True,
            eta: datetime | None = None,
            countdown: float | None = None,
            max_retries: int | None = None,
            **options: Any,
        ) -> BaseException:
            """Try again later; ``raise self.retry(…)``. ``countdown`` is in seconds."""

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Called by Celery when the task belongs to its app."""
        # Celery's is keyed by the thread: interleaved coroutines would share a request.
        cls.request_stack = RequestStack()
        for name in _HANDLERS:
            handler = inspect.getattr_static(cls, name)
            if inspect.iscoroutinefunction(handler):
                setattr(cls, name, _for_any_tracer(handler))

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """Validate the arguments, publish the task, and return a handle when the broker has confirmed.

        Raises InvalidArguments before anything is published; BrokerUnavailable; PublishTimeout when the broker has
        not answered within ``celeriac_publish_deadline`` seconds.
        """
        return await self._enqueue(args, kwargs, {})

    def using(self, **options: Unpack[EnqueueOptions]) -> PendingCall[P, R]:
        """The same task with options: ``await task.using(countdown=10).enqueue(…)``."""
        return PendingCall(self, options)

    async def _enqueue(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], options: dict[str, Any]
    ) -> TaskHandle[R]:
        if self.typing:
            serializer = options.get("serializer") or self.serializer
            args, kwargs = self.schema.prepare(tuple(args), dict(kwargs), serializer)
        return await self.submit(args, kwargs, options)

    async def submit(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], options: dict[str, Any]
    ) -> TaskHandle[R]:
        """As ``enqueue``, for arguments that its serializer takes as they are; ``schema.dump`` makes such."""
        if await runs_eagerly(self.app):
            return await self.run_eagerly(args, kwargs, options)
        schema = self._schema  # worked out by now, unless nothing is checked
        files = pending_in(args, kwargs) if schema is not None and schema.takes_files else ()
        handle: TaskHandle[R] = await self.app.submit(self.name, args, kwargs, options, self, files)
        return handle

    async def run_eagerly(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], options: dict[str, Any]
    ) -> TaskHandle[R]:
        """As Celery does with ``task_always_eager``: arguments travel through the serializer, and nothing is published.

        Raises what the task raises, with ``task_eager_propagates``.
        """
        known = {key: value for key, value in options.items() if key not in ("owner", "deadline")}
        call = partial(run_apart, super().apply_async, (tuple(args), dict(kwargs)), known)
        schema = self.schema
        with owned(options):
            if schema.takes_files and (files := pending_in(args, kwargs)):
                known["task_id"] = known.get("task_id") or new_id()
                ended = await self.app.uploads.lend([(known["task_id"], each) for each in files], call)
            else:
                ended = await call()
        return EagerHandle(ended, lambda value: schema.load_result(schema.dump_result(value)))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Call the function here and now: a coroutine function's coroutine is the caller's to await.

        In Celery's own tracer (``task.apply()``, stock worker pools) nobody would await it, so it is run to its end.
        """
        request = self.request_stack.top
        if not _traced_by_celery(request) or request._protected:
            return super().__call__(*args, **kwargs)
        request._protected = 1
        if not request.is_eager:
            refuse_cancelled(self, request)
            self.app.propagation.restore_anew(vars(request))
        return self._call_as_message(request, args, kwargs)

    def _call_as_message(self, request: Any, args: Any, kwargs: Any) -> Any:
        """Call the function as our worker does: with arguments that came as JSON, for a result that goes as JSON."""
        if self.schema.takes_files:
            with opened_here(self.app.uploads.place, self.schema, request.id, args, kwargs) as (args, kwargs):
                return self._call_with(request, args, kwargs)
        return self._call_with(request, args, kwargs)

    def _call_with(self, request: Any, args: Any, kwargs: Any) -> Any:
        validated = self.typing and self.app.settings.validate_arguments
        if validated and not self.is_pydantics:
            args, kwargs = self.schema.load(args, kwargs)
        elif self.injected.contexts or self.injected.dependant:
            args, kwargs = self.schema.place(args, kwargs)
        context = TaskContext(EagerExecution(self.name, request))
        kwargs = {**kwargs, **dict.fromkeys(self.injected.contexts, context)}
        if self.injected.dependant is None:
            value = run_to_end(self._body(args, kwargs))
        else:
            value = self._call_between_dependencies(request, args, kwargs, context)
        # Nobody but the caller gets the result of an eager call.
        return self.schema.dump_result(value) if validated and not request.is_eager else value

    def _body(self, args: Any, kwargs: Any) -> Any:
        if retries_itself(self) and inspect.iscoroutinefunction(self._orig_run):
            return retrying(self, self._orig_run(*args, **kwargs))
        return self.run(*args, **kwargs)

    def _call_between_dependencies(self, request: Any, args: Any, kwargs: Any, context: TaskContext) -> Any:
        itself = retries_itself(self)
        function = self._orig_run if itself else self.run
        scope = DependencyScope(self.injected, self.app.web_apps, request.headers or {}, context)
        with retries(self) if itself else contextlib.nullcontext():
            if not self.is_asynchronous:
                return call_here(scope, lambda values: function(*args, **{**kwargs, **values}))
            return run_to_end(scope.around(lambda values: awaited(function(*args, **{**kwargs, **values}))))

    def apply(self, *args: Any, **options: Any) -> Any:
        """Run the task here and now, by Celery's own tracer; returns its ``EagerResult``."""
        token = enter_eager_call()
        try:
            return super().apply(*args, **options)
        finally:
            if token is not None:
                leave_execution(token)

    @property
    def override_max_retries(self) -> int | None:
        """How often this execution is retried at most, if it has said so: ``self.retry(max_retries=…)`` sets it.

        Of the execution, because others of the same task run beside it. Raises AttributeError if it has said nothing.
        """
        try:
            limit: int | None = vars(self.request)["override_max_retries"]
        except KeyError:
            raise AttributeError("override_max_retries") from None
        return limit

    @override_max_retries.setter
    def override_max_retries(self, limit: int | None) -> None:
        vars(self.request)["override_max_retries"] = limit

    @override_max_retries.deleter
    def override_max_retries(self) -> None:
        vars(self.request).pop("override_max_retries", None)

    @property
    def function(self) -> Callable[..., Any]:
        """The function that was decorated, or ``run`` of a class-based task."""
        function = getattr(self, "_decorated_fun", None) or getattr(self, "_orig_run", None) or self.run
        unwrapped = inspect.unwrap(function)
        if inspect.ismethod(function) and not inspect.ismethod(unwrapped):
            unwrapped = unwrapped.__get__(function.__self__)  # a decorated method
        return cast("Callable[..., Any]", unwrapped)

    @property
    def is_asynchronous(self) -> bool:
        """Whether the function is a coroutine function or an async generator function."""
        # Not unwrapped: a plain function around a coroutine function is a plain function.
        return is_asynchronous(
            getattr(self, "_decorated_fun", None) or getattr(self, "_orig_run", None) or self.run
        )

    @property
    def schema(self) -> ArgumentSchema:
        """How this task's arguments and result become JSON values, and come back. Worked out once."""
        cls = type(self)
        if "_schema" not in cls.__dict__ or cls._schema is None:
            cls._schema = ArgumentSchema.from_function(
                self.function, bound=self._bound, exclude=injected_parameters(self.function)
            )
        return cls._schema

    @property
    def injected(self) -> Injected:
        """What the worker fills in. Worked out once. Raises ConfigurationError for dependencies no task can have."""
        cls = type(self)
        if "_injected" not in cls.__dict__ or cls._injected is None:
            cls._injected = Injected.of(self.function, self.name)
        return cls._injected

    @property
    def _bound(self) -> bool:
        """Whether the function's first parameter is the task."""
        run = inspect.getattr_static(type(self), "run", None)
        return getattr(self, "_decorated_fun", None) is not None and not isinstance(run, staticmethod)

    @property
    def is_pydantics(self) -> bool:
        """Whether Celery's ``pydantic=True`` is set: then Celery validates the arguments, its own way."""
        return self._dump_pydantic_arguments is not None

    @property
    def call_defaults(self) -> dict[str, Any]:
        """The options that every call of this task starts from."""
        options = {key: value for key, value in self._get_exec_options().items() if value is not None}
        if self.ignore_result is not None:
            options["ignore_result"] = self.ignore_result
        return options

    def apply_async(
        self, args: Any = None, kwargs: Any = None, task_id: str | None = None, **options: Any
    ) -> Any:
        """Celery's synchronous publish. It blocks: in a coroutine, use ``await task.enqueue(…)``."""
        if self.typing:
            serializer = options.get("serializer") or self.serializer
            args, kwargs = self.schema.prepare(tuple(args or ()), dict(kwargs or {}), serializer)
            if self.schema.takes_files:
                refuse_open_files(self.name, args, kwargs)
        return super().apply_async(args, kwargs, task_id, **options)

    def signature_from_request(self, request: Any = None, *args: Any, **kwargs: Any) -> Signature:
        """Celery's; inside a worker of ours the signature waits for the worker to publish it.

        ``Task.retry`` publishes what this returns, and it does so synchronously, which must not happen on the loop.
        """
        signature = super().signature_from_request(request, *args, **kwargs)
        execution = current_execution()
        if execution is not None and execution.task is self:
            signature.apply_async = lambda *_, **__: execution.hold_retry(signature)
        return signature

    def update_state(
        self, task_id: str | None = None, state: str | None = None, meta: Any = None, **kwargs: Any
    ) -> None:
        """Set the state of the running task, or of another. Inside a worker of ours it never waits."""
        execution = current_execution()
        if execution is not None and task_id in (None, execution.id) and state is not None:
            execution.set_state(state, meta)
        else:
            super().update_state(task_id, state, meta, **kwargs)

    def progress(self, current: float, total: float | None = None, note: str = "") -> None:
        """Record how far the running task is, in its own unit. Never waits; outside a worker it does nothing."""
        execution = current_execution()
        if execution is not None:
            execution.progress(current, total, note)

    def emit(self, value: Any) -> None:
        """Send a JSON-able value to who follows the task's events. Never waits; outside a worker it does nothing."""
        execution = current_execution()
        if execution is not None:
            execution.emit(value)


def _traced_by_celery(request: Any) -> bool:
    """Whether Celery's own tracer runs the task of this request, which awaits nothing."""
    if request is None or request.called_directly:
        return False
    return current_execution() is None or bool(request.is_eager)


def _for_any_tracer(handler: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    """A handler that is a coroutine function, which Celery's own tracer would call and not await."""

    @functools.wraps(handler)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        coroutine = handler(self, *args, **kwargs)
        return run_to_end(coroutine) if _traced_by_celery(self.request_stack.top) else coroutine

    return call
