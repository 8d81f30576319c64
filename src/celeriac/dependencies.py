"""What a task's function gets and nobody sends: its ``TaskContext``, and FastAPI's dependencies.

https://fastapi.tiangolo.com/tutorial/dependencies/
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ForwardRef

from celeriac.annotations import resolve, signature_of
from celeriac.context import TaskContext
from celeriac.errors import ConfigurationError

__all__ = ["Injected", "has_open_references", "injected", "injected_parameters"]

#: A default for parameters that are dependencies by their annotation: it tells type checkers that callers may leave
#: them out. The worker never uses it.
injected: Any = type("Injected", (), {"__repr__": lambda _: "injected"})()


@dataclass(frozen=True, slots=True)
class Injected:
    """What is injected into one task's function, worked out once.

    ``contexts`` are the parameters that want a TaskContext; ``dependant`` is FastAPI's graph of the others, ``None`` if
    there are none. ``reads_request``: whether anything in it looks at the request.
    """

    task: str
    contexts: tuple[str, ...]
    dependant: Any = None
    reads_request: bool = False

    @classmethod
    def of(cls, function: Callable[..., Any], task: str) -> Injected:
        """For the function of the task that is named ``task``. Raises ConfigurationError for what no task can have."""
        contexts, others = [], []
        for parameter in _injected(function):
            if parameter.annotation is TaskContext:
                contexts.append(parameter.name)
            else:
                others.append(parameter)
        if not others:
            return cls(task, tuple(contexts))
        from celeriac.dependants import reads_request

        dependant = _graph(task, others)
        return cls(task, tuple(contexts), dependant, reads_request(dependant))


def injected_parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """The parameters of a task's function that the worker fills in, and that are no part of a call.

    Raises ConfigurationError for a dependency whose annotation cannot be resolved.
    """
    return tuple(parameter.name for parameter in _injected(function))


def has_open_references(function: Callable[..., Any]) -> bool:
    """Whether an annotation names what is not defined yet: whether that is injected is known later."""
    return any(
        isinstance(parameter.annotation, (str, ForwardRef))
        and parameter.annotation not in ("Any", "typing.Any")
        and resolve(parameter.annotation, function) is Any
        for parameter in signature_of(function).parameters.values()
    )


def _injected(function: Callable[..., Any]) -> Iterator[inspect.Parameter]:
    # Nobody could have written a dependency without FastAPI; and to import it takes longer than all of celeriac.
    with_fastapi = "fastapi" in sys.modules
    for parameter in signature_of(function).parameters.values():
        annotation, default = parameter.annotation, parameter.default
        if annotation is parameter.empty and (default is parameter.empty or not with_fastapi):
            continue
        hint = resolve(annotation, inspect.unwrap(function))
        if (
            hint is Any
            and isinstance(annotation, str)
            and ("Depends(" in annotation or "Security(" in annotation)
        ):
            name = getattr(function, "__qualname__", function)
            raise ConfigurationError(
                f"{name}(): the annotation of {parameter.name!r} names what its module does not define: {annotation}."
                " Define it there, or leave out `from __future__ import annotations`."
            )
        if hint is TaskContext or hint == TaskContext | None:
            yield parameter.replace(annotation=TaskContext)
        elif with_fastapi and _is_fastapis(hint, default):
            yield parameter.replace(annotation=hint)


def _is_fastapis(hint: Any, default: Any) -> bool:
    from celeriac.dependants import is_injected

    return is_injected(hint, default)


def _graph(task: str, parameters: list[inspect.Parameter]) -> Any:
    from celeriac.dependants import build, refusals

    try:
        dependant = build(task, parameters)
    except Exception as exc:
        cure = (
            " A dependency gets a TaskContext by Depends(task_context)." if "TaskContext" in str(exc) else ""
        )
        raise ConfigurationError(
            f"FastAPI cannot use the dependencies of the task {task}: {exc}{cure}"
        ) from exc
    for refusal in refusals(dependant):
        where = f"depends on {refusal.dependency}(), which takes" if refusal.dependency else "takes"
        raise ConfigurationError(
            f"The task {task} {where} {refusal.what} ({refusal.parameter!r}), and a task has none: {refusal.cure}."
        )
    return dependant
