"""From transitions and events to what the SQL statements take."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from celery import states

from celeriac.sql.chords import Claim, Part
from celeriac.sql.transitions import Entry
from celeriac.stores.chords import ChordClaim, ChordPart
from celeriac.stores.records import READY_STATES, EventDraft, Transition
from celeriac.stores.rows import error_of

__all__ = ["celery_time", "to_claims", "to_entries", "to_event_rows", "to_part_rows"]


def celery_time(seconds: float) -> str:
    """Epoch seconds as SQLAlchemy keeps Celery's naive UTC times in SQLite."""
    moment = datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
    return moment.isoformat(sep=" ", timespec="microseconds")


def _clean(text: str | None) -> str | None:
    # A traceback may hold half a surrogate pair, from a file name for instance; in JSON this is its escape.
    if text is None or text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode()


def _entry(step: Transition) -> Entry:
    call = (
        step.task_id,
        step.state,
        step.at,
        _clean(step.name),
        _clean(step.queue),
        _clean(step.args),
        _clean(step.kwargs),
        _clean(step.owner),
        step.root_id,
        step.parent_id,
        step.group_id,
        step.eta,
        step.expires,
        step.retries,
    )
    if step.state == states.PENDING:
        return Entry(*call, replay=step.replay)
    return Entry(
        *call,
        worker=_clean(step.worker),
        result=_clean(step.result),
        traceback=_clean(step.traceback),
        error=_clean(error_of(step.state, step.result)),
        children=_clean(step.children),
        date_done=celery_time(step.at) if step.state in READY_STATES else None,
    )


def to_entries(transitions: Iterable[Transition]) -> list[Entry]:
    """The transitions as rows for ``celeriac.sql.transitions.apply_transitions``."""
    return [_entry(step) for step in transitions]


def to_event_rows(drafts: Iterable[EventDraft]) -> list[tuple[str, str, str, float]]:
    """The events as rows for ``celeriac.sql.records.append_events``."""
    return [(draft.task_id, draft.kind, _clean(draft.data) or "null", draft.at) for draft in drafts]


def to_part_rows(parts: Iterable[ChordPart]) -> list[Part]:
    """Parts of chords, as the database takes them."""
    return [
        Part(part.group_id, part.task_id, part.index, part.state, _clean(part.result) or "null")
        for part in parts
    ]


def to_claims(claims: Iterable[Claim]) -> list[ChordClaim]:
    """Claims, as the database gives them."""
    return [
        ChordClaim(claim.group_id, claim.token, [ChordPart(*part) for part in claim.parts], claim.header)
        for claim in claims
    ]
