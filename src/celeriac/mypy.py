"""A plugin for mypy: what a worker fills in is no part of a task's signature. ``plugins = ["celeriac.mypy"]``.

Mypy forgets what stands in ``Annotated``, so the plugin reads the source once more, by :mod:`ast`: that of the
function, and that of modules from which it imports its annotations.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from mypy.nodes import Decorator, MypyFile
from mypy.plugin import MethodContext, Plugin
from mypy.types import Instance, NoneType, Parameters, Type, UnionType, get_proper_type

__all__ = ["plugin"]

#: Classes that are filled in by their name alone.
_SPECIAL = frozenset(
    {
        "celeriac.context.TaskContext",
        "starlette.requests.HTTPConnection",
        "fastapi.security.oauth2.SecurityScopes",
    }
)

#: What FastAPI marks a parameter with that callers do not pass.
_MARKERS = frozenset({"Depends", "Security", "Header"})

#: How many aliases of aliases are followed.
_DEPTH = 10


def plugin(_version: str) -> type[Plugin]:
    """Mypy's entry: https://mypy.readthedocs.io/en/stable/extending_mypy.html"""
    return TaskPlugin


class TaskPlugin(Plugin):
    """Takes injected parameters out of ``Task[P, R]``."""

    def get_method_hook(self, fullname: str) -> Callable[[MethodContext], Type] | None:
        """For ``@celery.task``, ``@celery.task(…)`` and those of routers."""
        if fullname.endswith((".task", "TaskDecorator.__call__")):
            return _without_injected
        return None


def _without_injected(context: MethodContext) -> Type:
    task = get_proper_type(context.default_return_type)
    if not (isinstance(task, Instance) and task.type.fullname == "celeriac.task.Task" and task.args):
        return context.default_return_type
    parameters = get_proper_type(task.args[0])
    if not (isinstance(parameters, Parameters) and isinstance(context.context, Decorator)):
        return context.default_return_type
    checker: Any = context.api
    marked = _marked(checker.path, checker.modules, context.context)
    kept = [
        each
        for each in zip(parameters.arg_types, parameters.arg_kinds, parameters.arg_names, strict=True)
        if each[2] not in marked and not _is_special(each[0])
    ]
    if len(kept) == len(parameters.arg_types):
        return context.default_return_type
    types, kinds, names = (list(column) for column in zip(*kept, strict=True)) if kept else ([], [], [])
    fewer: Any = parameters.copy_modified(arg_types=types, arg_kinds=kinds, arg_names=names)
    return task.copy_modified(args=[fewer, *task.args[1:]])


def _is_special(annotation: Type) -> bool:
    kind = get_proper_type(annotation)
    if isinstance(kind, UnionType):  # TaskContext | None
        members = [each for each in kind.items if not isinstance(get_proper_type(each), NoneType)]
        return len(members) == 1 and _is_special(members[0])
    return isinstance(kind, Instance) and any(base.fullname in _SPECIAL for base in kind.type.mro)


def _marked(path: str, modules: dict[str, MypyFile], decorator: Decorator) -> set[str]:
    """The parameters of the decorated function that have a dependency in their annotation or for their default."""
    tree = _tree(path)
    function = _function(tree, decorator) if tree is not None else None
    if tree is None or function is None:
        return set()
    source = _Source(tree, modules)
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [
        *[None] * (len(positional) - len(arguments.defaults)),
        *arguments.defaults,
    ]
    pairs = [
        *zip(positional, defaults, strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    return {
        argument.arg
        for argument, default in pairs
        if _is_marker(default) or (argument.annotation and source.marks(argument.annotation))
    }


def _function(tree: ast.Module, decorator: Decorator) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """The function, by its name and by a line that it or its decorators stand on."""
    lines = {decorator.line, decorator.func.line}
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or node.name != decorator.func.name:
            continue
        if lines & {node.lineno, *(each.lineno for each in node.decorator_list)}:
            return node
    return None


class _Source:
    """A module's source, and those of the modules that it imports from."""

    def __init__(self, tree: ast.Module, modules: dict[str, MypyFile]) -> None:
        self._tree = tree
        self._modules = modules

    def marks(self, annotation: ast.expr, depth: int = 0) -> bool:
        """Whether the annotation, or the alias that it names, is ``Annotated`` with a dependency."""
        if depth > _DEPTH:
            return False
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            return self.marks(ast.parse(annotation.value, mode="eval").body, depth + 1)
        if isinstance(annotation, ast.Subscript) and _last_name(annotation.value) == "Annotated":
            elements = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else []
            return any(map(_is_marker, elements[1:])) or bool(elements and self.marks(elements[0], depth + 1))
        if isinstance(annotation, ast.Name):
            return any(source.marks(value, depth + 1) for source, value in self._meanings(annotation.id))
        if isinstance(annotation, ast.Attribute) and isinstance(annotation.value, ast.Name):
            module = self._imported_module(annotation.value.id)
            meanings = module._meanings(annotation.attr) if module else ()
            return any(source.marks(value, depth + 1) for source, value in meanings)
        return False

    def _meanings(self, name: str) -> Iterator[tuple[_Source, ast.expr]]:
        """What a name is set to, with the module that sets it."""
        for node in self._tree.body:
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    module = self._module(node.module or "") if (alias.asname or alias.name) == name else None
                    if module is not None:
                        yield module, ast.Name(alias.name, ast.Load())
                continue
            value: ast.expr | None = getattr(node, "value", None)
            if value is not None and name in map(_last_name, _targets(node)):
                yield self, value

    def _imported_module(self, name: str) -> _Source | None:
        for node in self._tree.body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        package = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
                        return self._module(f"{package}{alias.name}")
        return None

    def _module(self, fullname: str) -> _Source | None:
        module = self._modules.get(fullname)
        tree = _tree(module.path) if module is not None else None
        return None if tree is None else _Source(tree, self._modules)


def _targets(node: ast.stmt) -> list[Any]:
    """What a statement gives its value to: ``X = …``, ``X: TypeAlias = …``, ``type X = …``."""
    if isinstance(node, ast.Assign):
        return list(node.targets)
    if isinstance(node, ast.AnnAssign):
        return [node.target]
    return [getattr(node, "name", None)]


def _is_marker(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Call) and _last_name(node.func) in _MARKERS


def _last_name(node: Any) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _tree(path: str) -> ast.Module | None:
    try:
        return _parsed(path, Path(path).stat().st_mtime_ns)
    except (OSError, SyntaxError, ValueError):
        return None


@lru_cache(maxsize=64)
def _parsed(path: str, _changed_at: int) -> ast.Module:
    return ast.parse(Path(path).read_bytes())
