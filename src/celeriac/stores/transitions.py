"""What a transition makes of a record: the rules of :class:`celeriac.stores.records.Transition`, as one function.

``celeriac.sql.transitions`` says the same in SQL; a property test holds the two together.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from celery import states

from celeriac.stores.records import READY_STATES, Transition
from celeriac.stores.rows import Row, error_of, micros

__all__ = ["advance", "state_event"]

_ATTEMPTS_KEPT = 20
_ENDS_ATTEMPT = READY_STATES | {states.RETRY}

#: What a call is, once and for all; and what each delivery of it may have of its own.
_CALL = ("name", "args", "kwargs", "owner", "root_id", "parent_id", "group_id")
_DELIVERY = ("queue", "eta", "expires", "retries")
_TIMES = frozenset({"eta", "expires"})


def advance(row: Row | None, step: Transition, number: int) -> tuple[Row, bool] | None:
    """The record after a transition, and whether it entered a state; ``None`` when the transition does not apply.

    ``number`` is for a record that is created.
    """
    creates = step.state == states.PENDING
    if row is None:
        row = Row(number, step.task_id, step.state, **_given(step))
        return (row._replace(enqueued_at=micros(step.at)) if creates else _enter(row, step)), True
    if creates and not step.replay:
        enqueued = micros(step.at) if row.enqueued_at is None else row.enqueued_at
        return _fill(row, step)._replace(enqueued_at=enqueued), False
    if creates:
        return _start_over(row, step), True
    if not _applies(row, step):
        return None
    return _enter(_fill(row, step, _CALL)._replace(**_given(step, _DELIVERY)), step), True


def _given(step: Transition, names: Iterable[str] = (*_CALL, *_DELIVERY)) -> dict[str, Any]:
    return {
        name: micros(value) if name in _TIMES else value
        for name in names
        if (value := getattr(step, name)) is not None
    }


def _fill(row: Row, step: Transition, names: Iterable[str] = (*_CALL, *_DELIVERY)) -> Row:
    given = _given(step, names)
    return row._replace(**{name: value for name, value in given.items() if getattr(row, name) is None})


def _start_over(row: Row, step: Transition) -> Row:
    fresh = Row(row.number, row.task_id, states.PENDING, attempts=row.attempts, enqueued_at=micros(step.at))
    kept = {name: getattr(row, name) for name in (*_CALL, "queue")}
    return fresh._replace(**{**kept, "retries": 0, **_given(step)})


def _applies(row: Row, step: Transition) -> bool:
    if row.state in (states.SUCCESS, states.REVOKED):
        return False
    if row.state not in READY_STATES or step.state in (states.STARTED, states.RETRY):
        return True
    return step.state in READY_STATES and (step.retries or 0) > (row.retries or 0)


def _enter(row: Row, step: Transition) -> Row:
    at = micros(step.at)
    row = row._replace(
        state=step.state,
        worker=step.worker if step.worker is not None else row.worker,
        children=step.children if step.children is not None else row.children,
        result=step.result,
        traceback=step.traceback,
        started_at=at if step.state == states.STARTED else row.started_at,
        finished_at=at if step.state in READY_STATES else None,
    )
    return row._replace(attempts=_attempts(row, step))


def _attempts(row: Row, step: Transition) -> str | None:
    attempts: list[dict[str, Any]] = json.loads(row.attempts or "[]")
    if step.state == states.STARTED:
        attempt = {
            "retries": row.retries or 0,
            "worker": row.worker or "",
            "started_at": micros(step.at),
            "state": states.STARTED,
            "error": None,
        }
        attempts = [*attempts[-_ATTEMPTS_KEPT + 1 :], attempt]
    elif attempts and attempts[-1]["state"] not in _ENDS_ATTEMPT:
        attempts[-1] |= {"state": step.state, "error": error_of(step.state, step.result)}
    return json.dumps(attempts) if attempts else None


def state_event(row: Row) -> str:
    """The data of the event that tells of the state a record has entered."""
    error = error_of(row.state, row.result)
    return json.dumps({"state": row.state, "retries": row.retries or 0, "worker": row.worker, "error": error})
