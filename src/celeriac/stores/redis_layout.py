"""What the store and the result backend tell Redis: keys, scripts, and the arguments of scripts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from celery import states

from celeriac.redis.scripts import Script
from celeriac.stores.records import READY_STATES, EventDraft, Transition
from celeriac.stores.rows import CANCELLED, error_of, micros

__all__ = [
    "APPEND",
    "CANCEL",
    "EVENTS",
    "FORGET",
    "GET",
    "LIST",
    "TRANSITION",
    "TRIM",
    "Argument",
    "append_arguments",
    "cancel_arguments",
    "expiry",
    "key_prefix",
    "transition_arguments",
]

Argument = str | bytes | int

_LIBRARY = ("lua/record.lua", "lua/states.lua", "lua/flush.lua")

TRANSITION = Script.load("celeriac.stores", *_LIBRARY, "lua/transition.lua")
CANCEL = Script.load("celeriac.stores", *_LIBRARY, "lua/cancel.lua")
APPEND = Script.load("celeriac.stores", "lua/record.lua", "lua/append.lua")
GET = Script.load("celeriac.stores", "lua/record.lua", "lua/get.lua")
LIST = Script.load("celeriac.stores", "lua/record.lua", "lua/list.lua")
EVENTS = Script.load("celeriac.stores", "lua/record.lua", "lua/events.lua")
FORGET = Script.load("celeriac.stores", "lua/record.lua", "lua/remove.lua", "lua/forget.lua")
TRIM = Script.load("celeriac.stores", "lua/record.lua", "lua/remove.lua", "lua/trim.lua")


def key_prefix(options: Mapping[str, Any]) -> str:
    """What all keys begin with: ``global_keyprefix``, as Celery's key-value backends use it."""
    prefix = str(options.get("global_keyprefix") or "")
    return f"{prefix}_" if prefix and prefix[-1] not in ":_-." else prefix


def expiry(seconds: float | None) -> Argument:
    """How the scripts are told for how many seconds a finished record is kept."""
    return "" if seconds is None else max(1, int(seconds))


def _clean(text: str) -> Argument:
    # A traceback may hold half a surrogate pair, from a file name for instance; in JSON this is its escape.
    return text if text.isascii() else text.encode("utf-8", "backslashreplace")


def transition_arguments(
    prefix: str,
    expires: float | None,
    transitions: Iterable[Transition],
    stock: Mapping[str, str] | None = None,
) -> list[Argument]:
    """The arguments of ``TRANSITION``. ``stock``: by task, the SHA-1 of what a stock worker wrote about it."""
    arguments: list[Argument] = [prefix, expiry(expires)]
    for step in transitions:
        fields = _fields(step)
        if stock is not None:
            fields += ("stock", stock[step.task_id])
        arguments += (_clean(step.task_id), _clean(step.state), micros(step.at), len(fields) // 2)
        arguments += fields
    return arguments


def _fields(step: Transition) -> list[Argument]:
    """Names and values of what a transition gives."""
    fields: list[Argument] = []
    for name, text in (
        ("name", step.name),
        ("queue", step.queue),
        ("args", step.args),
        ("kwargs", step.kwargs),
        ("owner", step.owner),
        ("root_id", step.root_id),
        ("parent_id", step.parent_id),
        ("group_id", step.group_id),
    ):
        if text is not None:
            fields += (name, _clean(text))
    if step.retries is not None:
        fields += ("retries", step.retries)
    if step.eta is not None:
        fields += ("eta", micros(step.eta))
    if step.expires is not None:
        fields += ("expires", micros(step.expires))
    if step.state != states.PENDING:
        _add_outcome(fields, step)
    elif step.replay:
        fields += ("replay", "1")
    return fields


def _add_outcome(fields: list[Argument], step: Transition) -> None:
    for name, text in (
        ("worker", step.worker),
        ("result", step.result),
        ("traceback", step.traceback),
        ("children", step.children),
    ):
        if text is not None:
            fields += (name, _clean(text))
    if step.state in READY_STATES:
        fields += ("date_done", _celery_time(step.at))
    error = error_of(step.state, step.result)
    if error is not None:
        fields += ("error", _clean(error))


def _celery_time(seconds: float) -> str:
    """Epoch seconds as Celery writes ``date_done``."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def append_arguments(prefix: str, events: Iterable[EventDraft]) -> list[Argument]:
    """The arguments of ``APPEND``."""
    arguments: list[Argument] = [prefix]
    for draft in events:
        arguments += (_clean(draft.task_id), draft.kind, micros(draft.at), _clean(draft.data))
    return arguments


def cancel_arguments(
    prefix: str, expires: float | None, task_ids: Iterable[str], now: float, *, running: bool
) -> list[Argument]:
    """The arguments of ``CANCEL``."""
    error = error_of(states.REVOKED, CANCELLED) or ""
    flag = "1" if running else ""
    return [
        prefix,
        expiry(expires),
        flag,
        micros(now),
        CANCELLED,
        error,
        _celery_time(now),
        *map(_clean, task_ids),
    ]
