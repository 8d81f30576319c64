"""What a synchronous result backend over records does with chords: it counts them as the asyncio store does.

The semantics are those of Celery's Redis backend (``RedisBackend.on_chord_part_return``): whoever completes a header
claims the chord, calls the body, and nobody polls (``celery.chord_unlock``). So stock workers and ours complete one
chord together.
"""

from __future__ import annotations

import json
import time
from abc import abstractmethod
from collections.abc import Collection, Iterable
from typing import Any, Protocol

from celery import states
from celery.backends.base import Backend
from celery.canvas import maybe_signature
from celery.exceptions import ChordError
from celery.result import GroupResult, allow_join_result, result_from_tuple
from celery.utils.log import get_logger

from celeriac.compat import is_lazy_header
from celeriac.stores.chords import ChordClaim, ChordPart, claim_seconds

__all__ = ["ChordBackend", "SynchronousChords"]

logger = get_logger(__name__)

#: Seconds between two looks at a chord that somebody else has claimed.
_PAUSE = 0.25


class SynchronousChords(Protocol):
    """Chords as :class:`celeriac.stores.base.Store` has them, for code that may block."""

    def set_size(self, group_id: str, size: int) -> None:
        """``Store.set_chord_size``."""

    def extend(self, group_id: str, by: int) -> None:
        """``Store.extend_chord``."""

    def add(self, parts: Iterable[ChordPart], claim_for: float) -> list[ChordClaim]:
        """``Store.add_chord_parts``, with claims for so many seconds."""

    def claimed(self, group_ids: Iterable[str]) -> Collection[str]:
        """``Store.claimed_chords``."""

    def finish(self, claim: ChordClaim, claim_for: float) -> bool:
        """``Store.finish_chord``."""

    def trim(self, before: float | None) -> None:
        """Forget chords that have not changed since a time, and those that were remembered as done long enough."""


class ChordBackend(Backend):  # type: ignore[misc]
    """Celery's chord methods, over the chords of its store."""

    #: The chords beside the records.
    _chords: SynchronousChords

    @abstractmethod
    def _write_group(self, group_id: str, value: str) -> None:
        """Keep what a group consists of."""

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        self._chords.set_size(group_id, chord_size)

    def add_to_chord(self, chord_id: str, result: Any) -> None:
        self._chords.extend(chord_id, 1)

    def apply_chord(self, header_result_args: Any, body: Any, **options: Any) -> None:
        """Keep the structure of a header with groups in it; others are counted, and that is all."""
        self.ensure_chords_allowed()
        if is_lazy_header(header_result_args[1]):
            return
        header = self.app.GroupResult(*header_result_args)
        if any(isinstance(result, GroupResult) for result in header.results):
            self._write_group(header.id, json.dumps(header.as_tuple()))

    def on_chord_part_return(self, request: Any, state: str, result: Any, **options: Any) -> None:
        """Count a part that is done, and call the chord's body with the results if it was the last one.

        Raises StoreUnavailable.
        """
        if not request.group or not request.id:
            return
        value = self.encode(self.encode_result(result, state))
        text = value.decode() if isinstance(value, bytes) else str(value)
        part = ChordPart(request.group, request.id, getattr(request, "group_index", None), state, text)
        delivery = getattr(request, "delivery_info", None) or {}
        for claim in self._add(part, patient=bool(delivery.get("redelivered"))):
            self._complete(maybe_signature(request.chord, app=self.app), claim)
            # Not when that has failed: whoever runs a part again, once the claim has expired, may have more luck.
            if not self._chords.finish(claim, self._claim_for):
                logger.warning("The claim of chord %s expired before its body was published", claim.group_id)

    @property
    def _claim_for(self) -> float:
        return claim_seconds(self.app.conf.result_chord_join_timeout)

    def _trim_chords(self) -> None:
        # As BaseKeyValueStoreBackend.chord_expires: zero is for ever, and None as long as results.
        kept = self.prepare_expires(self.app.conf.result_chord_expires, type=float)
        self._chords.trim(time.time() - kept if kept else None)

    def _add(self, part: ChordPart, *, patient: bool) -> list[ChordClaim]:
        """Add a part. One that was delivered again may be the last chance of a chord whose claimant has died."""
        give_up = time.monotonic() + 2 * self._claim_for
        while not (claims := self._chords.add([part], self._claim_for)) and patient:
            if part.group_id not in self._chords.claimed([part.group_id]) or time.monotonic() > give_up:
                break
            time.sleep(_PAUSE)
        return claims

    def _complete(self, body: Any, claim: ChordClaim) -> None:
        try:
            results = self._results(claim)
        except ChordError as exc:
            self._fail(body, claim, exc)
        except Exception as exc:  # noqa: BLE001 - as Celery: whatever keeps results from being read fails the body
            self._fail(body, claim, ChordError(f"Join error: {exc!r}"))
        else:
            try:
                body.delay(results)
            except Exception as exc:  # noqa: BLE001 - as Celery: a body that cannot be published has failed
                self._fail(body, claim, ChordError(f"Callback error: {exc!r}"))

    def _fail(self, body: Any, claim: ChordClaim, error: ChordError) -> None:
        # Inside the handler of what went wrong, whose traceback Celery takes.
        logger.exception("Chord %r raised: %r", claim.group_id, error)
        self.chord_error_from_stack(body, error)

    def _results(self, claim: ChordClaim) -> list[Any]:
        """The results of the header, in its shape. Raises ChordError for a part that has failed."""
        if claim.header is None:
            return [self._value(part) for part in claim.parts]
        header = result_from_tuple(json.loads(claim.header), self.app)
        header.on_ready()  # or it would wait for itself
        with allow_join_result():
            joined: list[Any] = header.join(timeout=self.app.conf.result_chord_join_timeout, propagate=True)
        return joined

    def _value(self, part: ChordPart) -> Any:
        value = self.decode(part.result)
        if part.state in states.EXCEPTION_STATES:
            value = self.exception_to_python(value)
        if part.state in states.PROPAGATE_STATES:
            error = ChordError(f"Dependency {part.task_id} raised {value!r}")
            raise error from (value if isinstance(value, BaseException) else None)
        return value
