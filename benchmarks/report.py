"""The table that people read, and the file that programs read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, Skipped, number

__all__ = ["Row", "print_table", "write_json"]

Row = Figure | Skipped

_HEADINGS = ("scenario", "system", "what", "median", "min … max", "unit", "bar", "")


def print_table(rows: Iterable[Row]) -> None:
    """Print the rows as one Markdown table, aligned."""
    lines = [_HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADINGS))]
    for index, line in enumerate(lines):
        print("|", " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)), "|")
        if index == 0:
            print("|", " | ".join("-" * width for width in widths), "|")
    print()
    for row in rows:
        if isinstance(row, Figure) and row.note:
            print(f"  {row.scenario}, {row.system}, {row.what}: {row.note}")


def _cells(row: Row) -> tuple[str, ...]:
    if isinstance(row, Skipped):
        return (row.scenario, row.system, f"skipped: {row.reason}", "", "", "", "", "")
    spread = f"{number(min(row.values))} … {number(max(row.values))}" if len(row.values) > 1 else ""
    verdict = {None: "", True: "met", False: "MISSED"}[row.met]
    bar = str(row.bar) if row.bar else ""
    return (row.scenario, row.system, row.what, number(row.median), spread, row.unit, bar, verdict)


def write_json(path: Path, about: dict[str, Any], rows: Sequence[Row]) -> None:
    """Write the rows, and what they were measured on."""
    document = {"about": about, "rows": [row.as_json() for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
