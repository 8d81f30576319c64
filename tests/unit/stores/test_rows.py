"""Rows: what the database gives is what the store reads."""

from __future__ import annotations

from celeriac.sql.records import RECORD_COLUMNS
from celeriac.stores.rows import Row, error_of, to_record


def test_the_database_gives_a_row_in_its_order() -> None:
    assert tuple(RECORD_COLUMNS) == Row._fields


def test_what_somebody_else_has_written_does_not_hurt() -> None:
    record = to_record(
        Row(1, "a", "FAILURE", args="\x80pickle", result="[", progress='"x"', date_done="2026-01-02 03:04:05")
    )
    assert record.args == "<7 characters that are not JSON>"
    assert (record.error, record.progress) == (None, None)
    assert record.finished_at is not None
    assert record.finished_at.isoformat() == "2026-01-02T03:04:05+00:00"


def test_errors_in_one_line() -> None:
    assert error_of("FAILURE", '{"exc_type": "E", "exc_message": ["a", 1]}') == "E - a, 1"
    assert error_of("RETRY", '{"exc_type": "E", "exc_message": "a"}') == "E - a"
    assert error_of("SUCCESS", '{"exc_type": "E"}') is None
    assert error_of("FAILURE", "no JSON") is None
    assert error_of("FAILURE", None) is None
