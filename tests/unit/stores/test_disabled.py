"""An app without a result backend: what needs one is refused, in a sentence; what stray parts do is said."""

from __future__ import annotations

import logging

import pytest

from celeriac.errors import ConfigurationError
from celeriac.stores.chords import ChordPart
from celeriac.stores.disabled import DisabledStore


async def test_a_chord_needs_a_result_backend() -> None:
    store = DisabledStore()
    for refused in (
        store.set_chord_size("g", 2),
        store.save_chord_header("g", "[]"),
        store.extend_chord("g"),
    ):
        with pytest.raises(ConfigurationError, match="A chord needs a result backend"):
            await refused


async def test_parts_of_others_chords_are_not_counted_and_somebody_learns_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    parts = [ChordPart("g", str(index), index, "SUCCESS", "1") for index in range(2)]
    with caplog.at_level(logging.WARNING):
        assert await DisabledStore().add_chord_parts(parts) == []
    (record,) = caplog.records
    assert "chord g" in record.getMessage()
    assert "result_backend" in record.getMessage()


async def test_an_idempotency_key_needs_a_result_backend() -> None:
    store = DisabledStore()
    with pytest.raises(ConfigurationError, match="idempotency key needs a result backend"):
        await store.claim_key("key", "print", "task", expires=60)
    await store.release_key("key", "task")
    assert await store.gone(["task"]) == {}
