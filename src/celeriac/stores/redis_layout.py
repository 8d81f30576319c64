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
    "CLAIM_KEY",
    "EVENTS",
    "FORGET",
    "GET",
    "GONE",
    "LIST",
    "RELEASE_KEY",
    "TRANSITION",
    "TRIM",
    "Argument",
    "append_arguments",
    "cancel_arguments",
    "clean",
    "expiry",
    "gone_arguments",
    "key_prefix",
    "transition_arguments",
    "trim_arguments",
]

Argument = str | bytes | int

_CHANGING = ("lua/record.lua", "lua/change.lua", "lua/states.lua", "lua/flush.lua")

TRANSITION = Script.load("celeriac.stores", *_CHANGING, "lua/transition.lua")
CANCEL = Script.load("celeriac.stores", *_CHANGING, "lua/cancel.lua")
APPEND = Script.load("celeriac.stores", "lua/record.lua", "lua/change.lua", "lua/append.lua")
GET = Script.load("celeriac.stores", "lua/record.lua", "lua/get.lua")
LIST = Script.load("celeriac.stores", "lua/record.lua", "lua/list.lua")
EVENTS = Script.load("celeriac.stores", "lua/record.lua", "lua/events.lua")
FORGET = Script.load("celeriac.stores", "lua/record.lua", "lua/remove.lua", "lua/forget.lua")
TRIM = Script.load("celeriac.stores", "lua/record.lua", "lua/remove.lua", "lua/expired.lua", "lua/trim.lua")
GONE = Script.load("celeriac.stores", "lua/record.lua", "lua/expired.lua", "lua/gone.lua")
CLAIM_KEY = Script.load("celeriac.stores", "lua/record.lua", "lua/claim_key.lua")
RELEASE_KEY = Script.load("celeriac.stores", "lua/record.lua", "lua/release_key.lua")


def key_prefix(options: Mapping[str, Any]) -> str:
    """What all keys begin with: ``global_keyprefix``, as Celery's key-value backends use it."""
    prefix = str(options.get("global_keyprefix") or "")
    return f"{prefix}_" if prefix and prefix[-1] not in ":_-." else prefix


def expiry(seconds: float | None) -> Argument:
    """How the scripts are told for how many seconds a finished record is kept."""
    return "" if seconds is None else max(1, int(seconds))


def clean(text: str) -> Argument:
    """A text that Redis can be told."""
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
        state, name, args, result = step.state, step.name, step.args, step.result
        rare = _rare(step)
        if stock is not None:
            rare += ("stock", stock[step.task_id])
        arguments += (
            clean(step.task_id),
            clean(state),
            int(step.at * 1_000_000 + 0.5),
            "" if step.retries is None else step.retries,
            "" if name is None else clean(name),
            "" if step.queue is None else clean(step.queue),
            "" if args is None else clean(args),
            "" if step.kwargs is None else clean(step.kwargs),
            "" if step.root_id is None else clean(step.root_id),
            "" if step.worker is None else clean(step.worker),
            "" if result is None else clean(result),
            _celery_time(step.at) if state in READY_STATES else "",
            len(rare) // 2,
        )
        if rare:
            arguments += rare
    return arguments


def _rare(step: Transition) -> list[Argument]:
    """Names and values of what few transitions give."""
    rare: list[Argument] = []
    if step.owner is not None:
        rare += ("owner", clean(step.owner))
    if step.parent_id is not None:
        rare += ("parent_id", clean(step.parent_id))
    if step.group_id is not None:
        rare += ("group_id", clean(step.group_id))
    if step.eta is not None:
        rare += ("eta", micros(step.eta))
    if step.expires is not None:
        rare += ("expires", micros(step.expires))
    if step.state == states.PENDING:
        if step.replay:
            rare += ("replay", "1")
        return rare
    if step.children is not None:
        rare += ("children", clean(step.children))
    if step.traceback is not None:
        rare += ("traceback", clean(step.traceback))
    if step.result is not None and (error := error_of(step.state, step.result)) is not None:
        rare += ("error", clean(error))
    return rare


def _celery_time(seconds: float) -> str:
    """Epoch seconds as Celery writes ``date_done``."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def append_arguments(prefix: str, events: Iterable[EventDraft]) -> list[Argument]:
    """The arguments of ``APPEND``."""
    arguments: list[Argument] = [prefix]
    for draft in events:
        arguments += (clean(draft.task_id), draft.kind, micros(draft.at), clean(draft.data))
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
        *map(clean, task_ids),
    ]


def trim_arguments(
    prefix: str, expires: float | None, now: float, *, looks: int, compared: int
) -> list[Argument]:
    """The arguments of ``TRIM``: how many records to look at, and how many to compare."""
    kept = expiry(expires)
    return [prefix, _expired_before(kept, now), looks, compared, kept]


def gone_arguments(prefix: str, expires: float | None, now: float, task_ids: Iterable[str]) -> list[Argument]:
    """The arguments of ``GONE``."""
    kept = expiry(expires)
    return [prefix, kept, _expired_before(kept, now), *map(clean, task_ids)]


def _expired_before(kept: Argument, now: float) -> Argument:
    return "" if kept == "" else micros(now - int(kept))
