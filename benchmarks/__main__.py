"""``python -m benchmarks``: measure, print a table, and say which bars are missed."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks import machine
from benchmarks.figures import Figure, Skipped
from benchmarks.processes import Failed
from benchmarks.report import Row, print_table, write_json
from benchmarks.scale import FULL, QUICK
from benchmarks.scenarios import OPTIONAL, SCENARIOS


def main() -> int:
    """The exit code: 0, or 1 when a scenario has failed, or with ``--strict`` when a bar is missed."""
    arguments = _parser().parse_args()
    scale = QUICK if arguments.quick else FULL
    about = machine.describe()
    for key, value in about.items():
        print(
            f"{key}: {', '.join(f'{k} {v}' for k, v in value.items()) if isinstance(value, dict) else value}"
        )
    if machine.is_busy():
        print("\nSomething else is running on this machine: the figures will be worse than they could be.")
    print()
    rows: list[Row] = []
    failed = False
    for name in arguments.only or [name for name in SCENARIOS if name not in OPTIONAL]:
        started = time.monotonic()
        try:
            rows.extend(SCENARIOS[name](scale))
        except Failed as failure:
            # What the others have measured is worth having.
            failed = True
            rows.append(Skipped(name, "", failure.last_line))
            print(f"{name}: {failure}", file=sys.stderr, flush=True)
        print(f"{name}: measured in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    print_table(rows)
    if arguments.json:
        write_json(arguments.json, about, rows)
    missed = [row for row in rows if isinstance(row, Figure) and row.met is False]
    return 1 if failed or (missed and arguments.strict) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description="Measure celeriac, beside stock Celery and its peers."
    )
    parser.add_argument("--quick", action="store_true", help="less of everything: a glance, in a few minutes")
    parser.add_argument(
        "--only",
        action="append",
        choices=SCENARIOS,
        metavar="NAME",
        help=f"one of {', '.join(SCENARIOS)}; may be repeated",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a bar is missed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
