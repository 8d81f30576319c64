"""Says where Celery's synchronous publishing is called on an event loop, which stands still until the broker answers.

Once for each place in the code, with what to write instead.
"""

from __future__ import annotations

import ast
import itertools
import linecache
import logging
import sys
from types import FrameType

from celery.canvas import Signature

__all__ = ["warn"]

logger = logging.getLogger("celeriac.blocking")

#: Frames of these packages are between the code that called and here.
_ENGINE = frozenset({"celery", "celeriac", "kombu"})

#: Places that have been named; code that is made up at run time may have any number.
_MOST_PLACES = 1000

_named: set[tuple[str, int]] = set()


def warn(name: str) -> None:
    """Log that the task ``name`` is being published on the event loop, unless this place was named before."""
    entry, frame = _caller()
    if frame is None:
        return
    place = frame.f_code.co_filename, frame.f_lineno
    if place in _named or len(_named) >= _MOST_PLACES:
        return
    _named.add(place)
    call = _call_at(frame)
    logger.warning(
        "%s:%d: `%s` publishes %s on the event loop, where everything else waits until the broker has answered. "
        "Write %s instead. (Said once for each place.)",
        *place,
        ast.unparse(call) if call else linecache.getline(*place).strip() or entry.f_code.co_name,
        name,
        _instead(call, entry),
    )


def _caller() -> tuple[FrameType, FrameType | None]:
    """The engine's outermost frame below the code that called it, and the frame of that code."""
    entry = sys._getframe(1)
    frame = entry.f_back
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _ENGINE:
        entry, frame = frame, frame.f_back
    return entry, frame


def _call_at(frame: FrameType) -> ast.Call | None:
    """The call that the frame is at, read from its source, if that is there."""
    instruction = frame.f_lasti // 2
    positions = next(itertools.islice(frame.f_code.co_positions(), instruction, None), None)
    if positions is None or None in positions:
        return None
    first, last, start, end = positions
    assert first is not None
    lines = linecache.getlines(frame.f_code.co_filename, frame.f_globals)[first - 1 : last]
    if not lines:
        return None
    # Columns count bytes of UTF-8; the end first, because it may be on the first line.
    encoded = [line.encode() for line in lines]
    encoded[-1] = encoded[-1][:end]
    encoded[0] = encoded[0][start:]
    try:
        found = ast.parse(b"".join(encoded).decode(), mode="eval").body
    except (SyntaxError, ValueError):
        return None
    return found if isinstance(found, ast.Call) else None


def _instead(call: ast.Call | None, entry: FrameType) -> str:
    called = entry.f_locals.get("self")
    if call is not None and isinstance(call.func, ast.Attribute):
        on = ast.unparse(call.func.value)
        arguments = ", ".join(map(ast.unparse, [*call.args, *call.keywords]))
        if isinstance(called, Signature):
            return f"`await celery.enqueue({on})`"
        if call.func.attr == "delay":
            return f"`await {on}.enqueue({arguments})`"
        if call.func.attr == "apply_async":
            return f"`await {_with_options(on, call)}`"
        if call.func.attr == "send_task":
            return f"`await {on}.enqueue({arguments})`"
    if isinstance(called, Signature):
        return "`await celery.enqueue(…)` with the signature"
    return "`await task.enqueue(…)`, or `await task.using(…).enqueue(…)` with options,"


def _with_options(on: str, call: ast.Call) -> str:
    """``apply_async((1,), {"x": 2}, countdown=5)`` as ``using(countdown=5).enqueue(1, x=2)``."""
    if any(isinstance(each, ast.Starred) for each in call.args) or not all(
        each.arg for each in call.keywords
    ):
        return f"{on}.using(…).enqueue(…)"
    given = dict(zip(("args", "kwargs", "task_id"), call.args, strict=False))
    given |= {each.arg: each.value for each in call.keywords if each.arg}
    arguments = [*_positional(given.pop("args", None)), *_named_ones(given.pop("kwargs", None))]
    options = ", ".join(f"{name}={ast.unparse(value)}" for name, value in given.items())
    return f"{on}{f'.using({options})' if options else ''}.enqueue({', '.join(arguments)})"


def _positional(args: ast.expr | None) -> list[str]:
    if args is None or (isinstance(args, ast.Constant) and args.value is None):
        return []
    if isinstance(args, (ast.Tuple, ast.List)):
        return [ast.unparse(each) for each in args.elts]
    return [f"*{ast.unparse(args)}"]


def _named_ones(kwargs: ast.expr | None) -> list[str]:
    if kwargs is None or (isinstance(kwargs, ast.Constant) and kwargs.value is None):
        return []
    if isinstance(kwargs, ast.Dict):
        names = [
            key.value for key in kwargs.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)
        ]
        if len(names) == len(kwargs.values):
            values = map(ast.unparse, kwargs.values)
            return [f"{name}={value}" for name, value in zip(names, values, strict=True)]
    return [f"**{ast.unparse(kwargs)}"]
