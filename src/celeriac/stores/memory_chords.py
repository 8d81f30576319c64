"""Chords in memory, behind a lock: counted for stores and result backends in any thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, MutableMapping
from dataclasses import dataclass, field
from uuid import uuid4

from celeriac.stores.chords import REMEMBERED, ChordClaim, ChordPart, in_order

__all__ = ["MemoryChords"]


@dataclass(slots=True)
class _Chord:
    touched_at: float
    size: int | None = None
    extended: int = 0
    parts: dict[tuple[str, int | None], ChordPart] = field(default_factory=dict)
    token: str | None = None
    claimed_until: float = 0.0
    done_until: float = 0.0

    def is_complete(self) -> bool:
        return self.size is not None and len(self.parts) == self.size + self.extended

    def is_claimed(self, now: float) -> bool:
        return self.token is not None and self.claimed_until > now


class MemoryChords:
    """The chords of one name. ``headers`` is where the structure of complex headers is kept."""

    def __init__(self, headers: MutableMapping[str, str]) -> None:
        self._headers = headers
        self._lock = threading.Lock()
        self._chords: dict[str, _Chord] = {}

    def _chord(self, group_id: str, now: float) -> _Chord:
        chord = self._chords.setdefault(group_id, _Chord(now))
        if chord.done_until and chord.done_until <= now:
            chord = self._chords[group_id] = _Chord(now)
        chord.touched_at = now
        return chord

    def set_size(self, group_id: str, size: int) -> None:
        """Say how many parts a chord has: a new run of it."""
        with self._lock:
            chord = self._chord(group_id, time.time())
            chord.size = size
            chord.token = None
            chord.done_until = 0.0

    def extend(self, group_id: str, by: int) -> None:
        """So many parts more."""
        with self._lock:
            self._chord(group_id, time.time()).extended += by

    def save_header(self, group_id: str, header: str) -> None:
        """Keep the structure of a header."""
        self._headers[group_id] = header

    def add(self, parts: Iterable[ChordPart], claim_for: float) -> list[ChordClaim]:
        """Add parts, and claim for so many seconds what this completes."""
        now = time.time()
        claims = []
        with self._lock:
            touched = {}
            for part in parts:
                chord = self._chord(part.group_id, now)
                if not chord.done_until:
                    chord.parts.setdefault((part.task_id, part.index), part)
                    touched[part.group_id] = chord
            for group_id, chord in touched.items():
                if chord.is_complete() and not chord.is_claimed(now):
                    chord.token, chord.claimed_until = uuid4().hex, now + claim_for
                    ordered = in_order(chord.parts.values())
                    claims.append(ChordClaim(group_id, chord.token, ordered, self._headers.get(group_id)))
        return claims

    def claimed(self, group_ids: Iterable[str]) -> Collection[str]:
        """Which of these are claimed now."""
        now = time.time()
        with self._lock:
            return {
                group_id
                for group_id in group_ids
                if (chord := self._chords.get(group_id)) is not None and chord.is_claimed(now)
            }

    def finish(self, claim: ChordClaim, claim_for: float) -> bool:
        """Forget a chord's parts, and remember that it is done. False when the claim is somebody else's now."""
        now = time.time()
        with self._lock:
            chord = self._chords.get(claim.group_id)
            if chord is None or chord.token != claim.token:
                return False
            self._chords[claim.group_id] = _Chord(now, done_until=now + max(2 * claim_for, REMEMBERED))
            return True

    def trim(self, before: float | None) -> None:
        """Forget the chords that have not changed since a time, and those that are done and were remembered enough."""
        now = time.time()
        oldest = float("-inf") if before is None else before
        with self._lock:
            for group_id, chord in list(self._chords.items()):
                kept_until = chord.done_until
                if (kept_until and kept_until <= now) or (not kept_until and chord.touched_at < oldest):
                    del self._chords[group_id]
