"""SQLite's triggers on the records: each state that a task enters appends one ``state`` event, whoever writes it.

We raise ``version`` with every state that we write, and set all columns ourselves. A stock worker does not know
``version``, so a write that leaves it as it was is foreign: the trigger then fills in what only we keep (times,
attempts), and puts back what a stock backend blanks out where it does not know it.
"""

from __future__ import annotations

__all__ = ["ENDED", "READY", "attempts_after", "micros", "triggers"]

#: States that a task does not leave by itself, and states that end an attempt, as SQL lists.
READY = "('SUCCESS', 'FAILURE', 'REVOKED')"
ENDED = "('SUCCESS', 'FAILURE', 'REVOKED', 'RETRY')"

_ATTEMPTS_KEPT = 20


def micros(seconds: str) -> str:
    """Epoch seconds as whole microseconds: SQLite's JSON writes a REAL with 15 digits, which are too few."""
    return f"CAST({seconds} * 1000000 + 0.5 AS INTEGER)"


def attempts_after(before: str, *, status: str, retries: str, worker: str, at: str, error: str) -> str:
    """The attempts, a JSON list, after a task has entered ``status``; all arguments are SQL expressions.

    ``STARTED`` begins an attempt; any other state goes to the last one, unless that has ended.
    """
    return f"""CASE
    WHEN {status} = 'STARTED' THEN json_insert(
      CASE WHEN json_array_length({before}) >= {_ATTEMPTS_KEPT} THEN json_remove({before}, '$[0]')
           ELSE coalesce({before}, '[]') END,
      '$[#]', json_object('retries', coalesce({retries}, 0), 'worker', coalesce({worker}, ''),
                          'started_at', {micros(at)}, 'state', 'STARTED', 'error', NULL))
    WHEN json_extract({before}, '$[#-1].state') NOT IN {ENDED}
      THEN json_set({before}, '$[#-1].state', {status}, '$[#-1].error', {error})
    ELSE {before} END"""


# SQLite 3.38 has no function for the present time in seconds with a fraction.
_NOW = "((julianday('now') - 2440587.5) * 86400.0)"

_RESULT = "CAST(NEW.result AS TEXT)"

_ERROR = f"""CASE WHEN NEW.status IN ('FAILURE', 'RETRY', 'REVOKED') AND json_valid({_RESULT})
    THEN json_extract({_RESULT}, '$.exc_type') || ' - ' || coalesce(
      (SELECT group_concat(value, ', ') FROM json_each({_RESULT}, '$.exc_message')), '') END"""


def _append(at: str, error: str, condition: str = "1") -> str:
    return f"""INSERT INTO celeriac_event (record_id, kind, data, at)
  SELECT NEW.id, 'state', json_object('state', NEW.status, 'retries', coalesce(NEW.retries, 0),
                                      'worker', NEW.worker, 'error', {error}), {at}
  WHERE {condition};"""


def _complete(attempts_before: str, kept: str = "") -> str:
    attempts = attempts_after(
        attempts_before,
        status="NEW.status",
        retries="NEW.retries",
        worker="NEW.worker",
        at=_NOW,
        error=_ERROR,
    )
    return f"""UPDATE celery_taskmeta SET {kept}
    changed_at = {_NOW},
    started_at = CASE WHEN NEW.status = 'STARTED' THEN {_NOW} ELSE started_at END,
    finished_at = CASE WHEN NEW.status IN {READY} THEN {_NOW} END,
    error = {_ERROR},
    attempts = {attempts}
  WHERE id = NEW.id;"""


# As for our own writes: what a call is stays, what a delivery has of its own may change.
_KEPT = "".join(
    [f"{name} = coalesce(OLD.{name}, NEW.{name}), " for name in ("name", "args", "kwargs")]
    + [f"{name} = coalesce(NEW.{name}, OLD.{name}), " for name in ("worker", "retries", "queue")]
)

_STATEMENTS = {
    "celeriac_record_created": f"""
AFTER INSERT ON celery_taskmeta WHEN NEW.version IS NOT NULL BEGIN
  {_append("NEW.changed_at", "NEW.error")}
END""",
    "celeriac_record_entered": f"""
AFTER UPDATE OF status ON celery_taskmeta WHEN NEW.version IS NOT OLD.version BEGIN
  {_append("NEW.changed_at", "NEW.error")}
END""",
    # A stock backend inserts an empty row and fills it in the same transaction: PENDING says nothing there.
    "celeriac_record_created_by_celery": f"""
AFTER INSERT ON celery_taskmeta WHEN NEW.version IS NULL BEGIN
  {_complete("NULL")}
  {_append(_NOW, _ERROR, "NEW.status <> 'PENDING'")}
END""",
    "celeriac_record_entered_by_celery": f"""
AFTER UPDATE OF status ON celery_taskmeta WHEN NEW.version IS OLD.version BEGIN
  {_complete("OLD.attempts", _KEPT)}
  {_append(_NOW, _ERROR)}
END""",
}

#: Name → exactly the ``CREATE TRIGGER`` statement. One that reads otherwise in a database is replaced.
triggers: dict[str, str] = {
    name: f"CREATE TRIGGER {name}{statement}" for name, statement in _STATEMENTS.items()
}
