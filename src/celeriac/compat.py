"""What Celery does not document is touched here and in ``compat.py`` of ``worker`` and ``testing``, and nowhere else.

Each name with its upstream symbol.

``tests/unit/test_compat.py`` pins every one of them, so that an upgrade of Celery fails there and not in a worker.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from functools import partial
from threading import get_ident
from typing import Any

import celery
from celery import _state as celery_state
from celery import states
from celery.app.task import Context
from celery.app.utils import find_app
from celery.canvas import Signature
from celery.exceptions import Ignore
from celery.local import PromiseProxy, Proxy
from celery.utils.functional import _regen

from celeriac.errors import ConfigurationError, StoreUnavailable
from celeriac.protocol.codec import dumps

__all__ = [
    "SEND_TASK_OPTIONS",
    "RequestStack",
    "RunsTask",
    "TaskProxy",
    "TaskRequest",
    "as_current",
    "calls_inline",
    "chain_ids",
    "current_execution",
    "deferred",
    "enter_eager_call",
    "enter_execution",
    "evaluated",
    "fail_successors",
    "find_app",
    "has_custom",
    "is_always_eager",
    "is_lazy_header",
    "is_plain_signature",
    "key_stack_by_context",
    "leave_execution",
    "merge_signature",
    "pop_task",
    "push_task",
    "refuse_cancelled",
    "set_app",
    "set_backend",
    "set_defaults",
    "trail",
    "trailed_children",
]

logger = logging.getLogger("celeriac.task")

#: What ``celery.Celery.send_task`` takes by position after the keyword arguments, by name.
SEND_TASK_OPTIONS = tuple(inspect.signature(celery.Celery.send_task).parameters)[4:]

_execution: ContextVar[Any] = ContextVar("celeriac_execution", default=None)


def _ident() -> Hashable:
    return _execution.get() or get_ident()


def key_stack_by_context(stack: Any) -> None:
    """Let a stack of Celery's tell interleaved coroutines apart.

    ``celery.utils.threads._LocalStack.__ident_func__`` is the thread's id by default: two coroutines of one loop
    would see each other's request.
    """
    stack.__ident_func__ = _ident


# celery._state._task_stack is what celery.current_task reads; ``__storage__`` is where _LocalStack keeps its stacks.
key_stack_by_context(celery_state._task_stack)
_tasks_by_key = celery_state._task_stack._local.__storage__


def push_task(execution: object, task: Any) -> None:
    """Make ``task`` the current one of an execution, as ``_task_stack.push`` does in several look-ups."""
    _tasks_by_key[execution] = {"stack": [task]}


def pop_task(execution: object) -> None:
    """Take it away again, and whatever the task left behind on the stack."""
    _tasks_by_key.pop(execution, None)


class EagerCall:
    """Tells the stacks of a call apart that is made here and now: its coroutine may run in another thread."""

    __slots__ = ()


class RunsTask:
    """What runs a task, and makes the task's request of it when somebody asks: most tasks never do."""

    __slots__ = ()

    @property
    def request(self) -> TaskRequest:
        """Celery's request of the task."""
        raise NotImplementedError


class RequestStack:
    """A task's requests by execution or thread: ``celery.utils.threads._LocalStack``, in fewer steps.

    ``Task.push_request``, ``pop_request`` and ``_get_request`` use ``push``, ``pop`` and ``top``.
    """

    __slots__ = ("_stacks",)

    def __init__(self) -> None:
        self._stacks: dict[Hashable, list[Any]] = {}

    def push(self, request: Any) -> list[Any]:
        """Put a request, or what has one to give, on top."""
        stack = self._stacks.setdefault(_ident(), [])
        stack.append(request)
        return stack

    def pop(self) -> Any:
        """Take the top one away."""
        key = _ident()
        stack = self._stacks.get(key)
        if not stack:
            return None
        request = stack.pop()
        if not stack:
            del self._stacks[key]
        return request

    @property
    def top(self) -> Any:
        """The top one, or ``None``."""
        stack = self._stacks.get(_ident())
        if not stack:
            return None
        request = stack[-1]
        return request.request if isinstance(request, RunsTask) else request

    @property
    def stack(self) -> list[Any]:
        """All of them."""
        return [
            request.request if isinstance(request, RunsTask) else request
            for request in self._stacks.get(_ident(), ())
        ]

    def __len__(self) -> int:
        return len(self._stacks.get(_ident(), ()))


def enter_execution(execution: object) -> Token[Any]:
    """Give this context, and the tasks and threads that are started from it, stacks of their own."""
    return _execution.set(execution)


def leave_execution(token: Token[Any]) -> None:
    """Go back to the stacks of before."""
    _execution.reset(token)


def current_execution() -> Any:
    """The worker's execution that this code runs in, else ``None``."""
    execution = _execution.get()
    return None if type(execution) is EagerCall else execution


def enter_eager_call() -> Token[Any] | None:
    """Give an eager call stacks of its own, unless it has them from the execution or the call that makes it."""
    return None if _execution.get() is not None else _execution.set(EagerCall())


class TaskRequest(Context):  # type: ignore[misc]
    """Celery's task request, ``celery.app.task.Context``, which works out the custom headers only when asked."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values)

    @property
    def headers(self) -> Any:
        own = self.__dict__
        if "_headers" not in own:
            own["_headers"] = self._get_custom_headers(own.get("message_headers") or {})
        return own["_headers"]

    @headers.setter
    def headers(self, value: Any) -> None:
        self.__dict__["_headers"] = value


def is_always_eager(app: Any) -> bool | None:
    """The setting ``task_always_eager``, without the walk through all maps of ``celery.app.utils.Settings``.

    ``changes`` is what was set on ``app.conf`` itself; what a configuration object said does not change. ``None``
    before the configuration was read, which reads files: it is a ``celery.app.base.PendingConfiguration`` then.
    """
    changes = app.conf.changes
    if type(changes) is not dict:
        return None
    changed = changes.get("task_always_eager")
    if changed is None:
        known = vars(app)
        if "_configured_eager" not in known:
            known["_configured_eager"] = bool(app.conf.task_always_eager)
        changed = known["_configured_eager"]
    return bool(changed)


def set_defaults(conf: Any, defaults: Mapping[str, Any]) -> None:
    """Change the defaults of a ``celery.app.utils.Settings``: they lose against everything that a user sets.

    The last of ``maps`` is Celery's own defaults, copied for each app. ``add_defaults`` would win against
    ``config_from_object``.
    """
    conf.maps[-1].update(defaults)


def set_backend(app: Any, backend: Any) -> None:
    """Make this the result backend of the running thread, unless it has one: ``celery.Celery._backend``."""
    if app._backend is None:
        app._backend = backend


@contextmanager
def as_current(app: Any) -> Iterator[None]:
    """Make this the thread's current app, ``celery._state._tls.current_app``, which is what a signature that was read
    from a message belongs to if nobody has said to which app it does."""
    tls = celery_state._tls
    former, tls.current_app = tls.current_app, app
    try:
        yield
    finally:
        tls.current_app = former


def is_plain_signature(signature: Signature) -> bool:
    """Whether it is one task, and no canvas: the classes of ``celery.canvas`` have an ``apply_async`` of their own."""
    return type(signature).apply_async is Signature.apply_async


def merge_signature(
    signature: Signature, args: Sequence[Any], kwargs: Mapping[str, Any] | None, options: dict[str, Any]
) -> tuple[str, tuple[Any, ...], dict[str, Any], dict[str, Any]]:
    """A signature's task, arguments and options with those of its call: ``Signature._merge``."""
    merged_args, merged_kwargs, merged_options = signature._merge(tuple(args), dict(kwargs or {}), options)
    return signature.task, tuple(merged_args), dict(merged_kwargs), dict(merged_options)


def set_app(signature: Signature, app: Any) -> None:
    """Bind a signature, and what is in it, to an app: ``Signature._app``, else the current app's."""
    signature._app = app


class _Child:
    """What ``Context.children`` holds, without the backend that an ``AsyncResult`` would open, here and now."""

    __slots__ = ("id",)

    def __init__(self, task_id: str) -> None:
        self.id = task_id

    def as_tuple(self) -> tuple[tuple[str, None], None]:
        return (self.id, None), None


def trail(task_id: str) -> None:
    """Note a task that the running one has called among its children, as ``Task.add_trail`` does."""
    execution = current_execution()
    if execution is not None and execution.task.trail:
        execution.request.children.append(_Child(task_id))


def has_custom(task: Any, name: str) -> bool:
    """Whether a task class overrides a handler of ``celery.app.task.Task`` (``celery.app.trace.task_has_custom``)."""
    for cls in type(task).__mro__:
        if cls.__module__ in ("celery.app.task", "celeriac.task"):
            return False
        if name in cls.__dict__:
            return True
    return False


def fail_successors(backend: Any, request: Any, error: BaseException, traceback: str | None) -> None:
    """What ``celery.backends.base.Backend.mark_as_failure`` does besides storing the task's own result."""
    if request.chord:
        backend.on_chord_part_return(request, states.FAILURE, error)
    backend._fail_chain(request.chain, error, traceback, store_result=True, state=states.FAILURE)
    if request.errbacks:
        backend._call_task_errbacks(request, error, traceback)


def refuse_cancelled(task: Any, request: Any) -> None:
    """End an attempt in Celery's own tracer if the task was cancelled: ``celery.worker.request.Request.revoked``
    asks the worker's memory alone, where a cancel mark that outlives workers is not.

    Raises ``Ignore``, after what ``Request._announce_revoked`` does with the backend.
    """
    backend = task.backend
    if not hasattr(backend, "is_cancelled"):
        return
    try:
        cancelled = backend.is_cancelled(request.id)
    except StoreUnavailable as exc:
        logger.warning("Whether task %s was cancelled is not known, and it runs: %s", request.id, exc)
        return
    if cancelled:
        backend.mark_as_revoked(request.id, "cancelled", request=request)
        raise Ignore("cancelled")


def is_lazy_header(results: Any) -> bool:
    """Whether a chord's header results come from a generator: ``celery.utils.functional._regen``. To look into it
    would run through it."""
    return isinstance(results, _regen)


def calls_inline(backend: Any, errback: Signature) -> bool:
    """Whether Celery calls an errback where the task failed, and does not publish it
    (``celery.backends.base.Backend._call_task_errbacks``).

    That depends on how many arguments it takes (``Backend._errback_arity_greater``). Raises NotRegistered.
    """
    header = getattr(errback.type, "__header__", None)
    return (
        header is not None
        and not isinstance(header, partial)
        and bool(backend._errback_arity_greater(errback, 1))
    )


def chain_ids(chain: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """The tasks of a chain whose state ``celery.backends.base.Backend._fail_chain`` asks for: those with a chord."""
    ahead, found = list(chain or ()), []
    while ahead:
        step = ahead.pop()
        options = step.get("options") or {}
        if "chord" in options and options.get("task_id"):
            found.append(options["task_id"])
        if step.get("subtask_type") == "chord" and (body := (step.get("kwargs") or {}).get("body")):
            ahead.append(body)
    return found


def trailed_children(request: Context) -> str | None:
    """The tasks that a task has called, as Celery's result meta has them (``Backend.current_task_children``)."""
    children = request._children
    return dumps([child.as_tuple() for child in children]) if children else None


def deferred(make: Callable[[], Any]) -> Any:
    """What ``make`` makes, at its first use, as Celery's ``@app.task`` defers tasks: ``celery.local.PromiseProxy``."""
    return PromiseProxy(make)


def evaluated(task: Any) -> Any:
    """The object itself of a deferred one."""
    return task._get_current_object() if type(task) is PromiseProxy else task


class TaskProxy(Proxy):  # type: ignore[misc]
    """A task that is looked up each time it is used: ``celery.local.Proxy``.

    Who only looks at it (``inspect``, a test runner that collects) sees a plain object while ``find`` raises.
    """

    __slots__ = ("_find",)

    def __init__(self, find: Callable[[], Any], function: Callable[..., Any]) -> None:
        super().__init__(find, name=function.__name__, __doc__=function.__doc__)
        object.__setattr__(self, "_find", find)

    def _get_current_object(self) -> Any:
        return object.__getattribute__(self, "_find")()

    def _get_class(self) -> type:
        try:
            return type(self._get_current_object())
        except ConfigurationError:
            return TaskProxy

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(self._get_current_object(), name)
        except ConfigurationError as exc:
            if name.startswith("__"):
                raise AttributeError(name) from exc
            raise

    def __repr__(self) -> str:
        try:
            return repr(self._get_current_object())
        except ConfigurationError:
            return f"<task {self.__name__} of a TaskRouter that no app has included>"
