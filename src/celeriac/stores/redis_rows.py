"""What Redis answers, as records and events; and what stock workers have written, as transitions."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from celery import states
from celery.backends.base import decompress_payload

from celeriac.stores.records import READY_STATES, Attempt, TaskEvent, TaskRecord, Transition
from celeriac.stores.rows import moment, to_progress

__all__ = ["FIELDS", "Kept", "news", "status_in", "stock_step", "to_redis_event", "to_redis_record"]

#: What the places of a record's array are, as ``lua/record.lua`` has them.
FIELDS = (
    "state",
    "name",
    "queue",
    "args",
    "kwargs",
    "owner",
    "root_id",
    "parent_id",
    "group_id",
    "enqueued_at",
    "eta",
    "expires",
    "started_at",
    "finished_at",
    "retries",
    "worker",
    "children",
    "attempts",
    "open",
    "cancel_requested_at",
    "number",
    "stock",
    "progress",
    "log",
    "listed",
)

#: How Celery's result begins when we have written it.
_OURS = b'{"task_id": '

_STATUS = re.compile(rb'"status": "([^"]*)"')
_ANY_STATUS = re.compile(rb"status.{0,8}?(SUCCESS|FAILURE|REVOKED|STARTED|RETRY)", re.DOTALL)


class Kept(NamedTuple):
    """What is kept of a task: the texts of its record, empty where there is nothing, and Celery's result."""

    values: Sequence[bytes]
    written: bytes | None

    def field(self, name: str) -> str:
        """One text of the record."""
        return self.values[FIELDS.index(name)].decode("utf-8", "replace")


def status_in(message: bytes) -> str | None:
    """The state that a published result tells; ``None`` if that cannot be seen."""
    found = _STATUS.search(message)
    return None if found is None else found.group(1).decode("utf-8", "replace")


def news(kept: Kept) -> str | None:
    """The SHA-1 of what a stock worker has written, unless the record has taken it in."""
    text = kept.written
    if text is None or (text.startswith(_OURS) and kept.values[0]):
        return None
    sha = hashlib.sha1(text, usedforsecurity=False).hexdigest()
    return None if kept.field("stock") == sha else sha


def stock_step(task_id: str, text: bytes) -> Transition:
    """The transition that a stock worker has made when it wrote this."""
    written = _decoded(text)
    state = str(written["status"])
    done = _date(written.get("date_done"))
    failed = state in states.EXCEPTION_STATES
    return Transition(
        task_id=task_id,
        state=state,
        at=time.time() if done is None else done.timestamp(),
        result=json.dumps(written.get("result")) if failed else None,
        retries=_integer(written.get("retries")),
        name=_string(written.get("name")),
        queue=_string(written.get("queue")),
        worker=_string(written.get("worker")),
        parent_id=_string(written.get("parent_id")),
        group_id=_string(written.get("group_id")),
        args=_dumped(written.get("args")),
        kwargs=_dumped(written.get("kwargs")),
        children=_dumped(written.get("children")),
    )


def to_redis_record(task_id: str, kept: Kept) -> TaskRecord | None:
    """The record of what is kept; ``None`` if Celery's result was deleted."""
    fields: dict[str, str | None] = dict(zip(FIELDS, map(_text, kept.values), strict=True))
    state, text = fields["state"], kept.written
    if text is None and (state is None or state in READY_STATES):
        return None
    written = {} if text is None else _decoded(text)
    record = TaskRecord(
        id=task_id,
        state=state or str(written["status"]),
        name=fields["name"],
        queue=fields["queue"],
        args=_json(fields["args"]),
        kwargs=_json(fields["kwargs"]),
        owner=fields["owner"],
        root_id=fields["root_id"],
        parent_id=fields["parent_id"],
        group_id=fields["group_id"],
        enqueued_at=_moment(fields["enqueued_at"]),
        eta=_moment(fields["eta"]),
        expires=_moment(fields["expires"]),
        started_at=_moment(fields["started_at"]),
        finished_at=_moment(fields["finished_at"]),
        retries=int(fields["retries"] or 0),
        worker=fields["worker"],
        attempts=_attempts(fields["attempts"]),
        progress=to_progress(_json(fields["progress"])),
        result=written.get("result"),
        traceback=written.get("traceback"),
        children=_json(fields["children"]),
        cancel_requested_at=_moment(fields["cancel_requested_at"]),
    )
    return record if news(kept) is None else _overlaid(record, written)


def _overlaid(record: TaskRecord, written: Mapping[str, Any]) -> TaskRecord:
    """The record as a stock worker has it."""
    state = str(written["status"])
    retries = _integer(written.get("retries"))
    return replace(
        record,
        state=state,
        finished_at=_date(written.get("date_done")) if state in READY_STATES else None,
        name=record.name or _string(written.get("name")),
        args=written.get("args") if record.args is None else record.args,
        kwargs=written.get("kwargs") if record.kwargs is None else record.kwargs,
        queue=_string(written.get("queue")) or record.queue,
        worker=_string(written.get("worker")) or record.worker,
        retries=record.retries if retries is None else retries,
    )


def to_redis_event(number: int, task_id: str, text: bytes) -> TaskEvent:
    """The event at a position."""
    kind, at, *data = json.loads(text)
    if kind != "state":
        return TaskEvent(str(number), task_id, kind, data[0], moment(at))
    state, retries, worker, error = data
    told = {"state": state, "retries": retries, "worker": worker, "error": error}
    return TaskEvent(str(number), task_id, kind, told, moment(at))


def _decoded(text: bytes) -> dict[str, Any]:
    """What Celery's result says, however it was serialized; at least its status."""
    with contextlib.suppress(Exception):  # of any serializer and compression that stock workers have
        decoded = json.loads(decompress_payload(text))
        if isinstance(decoded, dict) and isinstance(decoded.get("status"), str):
            return decoded
    found = _ANY_STATUS.search(text)
    state = found.group(1).decode() if found else "UNKNOWN"
    return {"status": state, "result": f"<{len(text)} bytes that are not JSON>"}


def _dumped(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def _text(value: bytes) -> str | None:
    return value.decode("utf-8", "replace") if value else None


def _json(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _moment(text: str | None) -> datetime | None:
    return None if text is None else moment(int(text))


def _date(text: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _attempts(text: str | None) -> list[Attempt]:
    if text is None:
        return []
    lines = json.loads("[" + text.replace("\n", ",") + "]")
    return [Attempt(retries, worker, moment(at), state, error) for retries, at, worker, state, error in lines]
