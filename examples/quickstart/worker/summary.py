"""From CSV or JSON records to a summary of each column. Plain functions: no Celery here."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import statistics
from collections.abc import Callable, Sequence
from datetime import date, datetime
from typing import Any, Literal

from pydantic import BaseModel

__all__ = ["ColumnSummary", "ColumnType", "Table", "parse", "summarize"]

ColumnType = Literal[
    "integer", "number", "boolean", "date", "datetime", "text", "object", "array", "mixed", "empty"
]

#: Column name to values, in the order of the data; ``None`` is a missing value.
Table = dict[str, list[Any]]

_MISSING = {"", "na", "n/a", "nan", "none", "null"}
_BOOLEANS = {"true": True, "false": False, "yes": True, "no": False}
_INTEGER = re.compile(r"[+-]?\d{1,300}")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class ColumnSummary(BaseModel):
    """What one column holds. ``min`` and ``max`` are of values that have an order, ``mean`` is of numbers."""

    type: ColumnType
    missing: int
    min: int | float | str | None = None
    max: int | float | str | None = None
    mean: float | None = None


def parse(payload: str) -> Table:
    """The columns of a payload: JSON (an array of objects, or one object), or CSV with a header.

    Raises ValueError, with a sentence for whoever sent it.
    """
    text = payload.strip().removeprefix("\ufeff")
    if not text:
        raise ValueError("The payload is empty.")
    return _from_records(_load_json(text)) if text[0] in "[{" else _from_csv(text)


def _load_json(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except json.JSONDecodeError as exc:
        raise ValueError(f"The payload is not valid JSON: {exc}.") from None
    except RecursionError:
        raise ValueError("The payload is not valid JSON: it is nested too deeply.") from None


def _finite(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        raise ValueError(f"The payload has a number that JSON cannot carry: {literal}.")
    return number


def _from_records(data: Any) -> Table:
    records = [data] if isinstance(data, dict) else data
    if not records:
        raise ValueError("The payload has no records.")
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise ValueError(f"Record {number} is no JSON object: {json.dumps(record)[:40]}.")
    names = dict.fromkeys(name for record in records for name in record)
    if not names:
        raise ValueError("The payload has no columns.")
    return {name: [record.get(name) for record in records] for name in names}


def _from_csv(text: str) -> Table:
    try:
        rows = [row for row in csv.reader(io.StringIO(text), delimiter=_delimiter(text)) if row]
    except csv.Error as exc:
        raise ValueError(f"The payload is not valid CSV: {exc}.") from None
    header, *body = ([cell.strip() for cell in row] for row in rows)
    if not body:
        raise ValueError("The payload is neither JSON records nor CSV with a header and at least one row.")
    if len(set(header)) < len(header) or "" in header:
        raise ValueError(
            f"The header of the CSV needs a different name for each column: {', '.join(header)}."
        )
    for number, row in enumerate(body, 1):
        if len(row) != len(header):
            raise ValueError(f"Row {number} of the CSV has {len(row)} values; the header has {len(header)}.")
    columns = (list(column) for column in zip(*body, strict=True))
    return {name: _typed(column) for name, column in zip(header, columns, strict=True)}


def _delimiter(text: str) -> str:
    header = text.partition("\n")[0]
    return max(",;\t|", key=header.count)


def _typed(cells: Sequence[str]) -> list[Any]:
    """The cells of a column as the narrowest type that fits all of them."""
    present = [cell for cell in cells if cell.casefold() not in _MISSING]
    convert = next((convert for convert in _CONVERSIONS if _fits(convert, present)), str)
    return [convert(cell) if cell.casefold() not in _MISSING else None for cell in cells]


def _fits(convert: Callable[[str], Any], cells: Sequence[str]) -> bool:
    try:
        for cell in cells:
            convert(cell)
    except ValueError:
        return False
    return True


def _integer(cell: str) -> int:
    if not _INTEGER.fullmatch(cell):
        raise ValueError(cell)
    return int(cell)


def _number(cell: str) -> float:
    if not _NUMBER.fullmatch(cell) or not math.isfinite(float(cell)):
        raise ValueError(cell)
    return float(cell)


def _boolean(cell: str) -> bool:
    if cell.casefold() not in _BOOLEANS:
        raise ValueError(cell)
    return _BOOLEANS[cell.casefold()]


_CONVERSIONS: tuple[Callable[[str], Any], ...] = (
    _integer,
    _number,
    _boolean,
    date.fromisoformat,
    datetime.fromisoformat,
)


def summarize(values: Sequence[Any]) -> ColumnSummary:
    """The summary of one column."""
    present = [value for value in values if value is not None]
    kind = _type_of(present)
    summary = ColumnSummary(type=kind, missing=len(values) - len(present))
    if kind in ("integer", "number"):
        summary.min, summary.max, summary.mean = min(present), max(present), _mean(present)
    elif kind in ("date", "datetime", "text"):
        texts = [value if isinstance(value, str) else value.isoformat() for value in present]
        summary.min, summary.max = min(texts), max(texts)
    return summary


def _mean(numbers: Sequence[float]) -> float | None:
    try:
        mean = statistics.fmean(numbers)
    except OverflowError:
        return None
    return mean if math.isfinite(mean) else None


def _type_of(present: Sequence[Any]) -> ColumnType:
    kinds = {type(value) for value in present}
    if not kinds:
        return "empty"
    if kinds == {int, float}:
        return "number"
    if len(kinds) > 1:
        return "mixed"
    return _TYPES.get(kinds.pop(), "mixed")


_TYPES: dict[type, ColumnType] = {
    int: "integer",
    float: "number",
    bool: "boolean",
    date: "date",
    datetime: "datetime",
    str: "text",
    dict: "object",
    list: "array",
}
