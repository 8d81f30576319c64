"""What an attack has measured, and the table of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["Figures", "table"]


@dataclass
class Figures:
    """The figures of one attack on one promise over one broker.

    ``lost`` and ``doubled`` are the ids of tasks; ``broken`` are sentences about what else was not as promised.
    ``recovery`` is the longest time until something went on that a fault had stopped, in seconds.
    """

    promise: int
    broker: str
    faults: Counter[str] = field(default_factory=Counter)
    enqueued: int = 0
    repeated: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    recovery: float | None = None
    seconds: float = 0.0

    @property
    def kept(self) -> bool:
        """Whether the promise held."""
        return not (self.lost or self.doubled or self.broken)

    def row(self) -> list[str]:
        """Its row of the table."""
        faults = ", ".join(f"{count} {name}" for name, count in sorted(self.faults.items())) or "none"
        return [
            str(self.promise),
            self.broker,
            faults,
            f"{self.enqueued:,}",
            str(len(self.lost)),
            str(len(self.doubled)),
            str(self.repeated),
            "-" if self.recovery is None else f"{self.recovery:.1f} s",
            f"{self.seconds:.0f} s",
            "kept" if self.kept else "BROKEN",
        ]

    def complaints(self) -> list[str]:
        """What is wrong, a line each."""
        start = f"promise {self.promise} on {self.broker}: "
        return [
            *(f"{start}lost {task}" for task in self.lost[:20]),
            *(f"{start}doubled {task}" for task in self.doubled[:20]),
            *(start + sentence for sentence in self.broken[:20]),
        ]


#: ``repeated`` are tasks that ran again because their worker, or their server, had died: at least once.
_HEAD = [
    "promise",
    "broker",
    "faults",
    "enqueued",
    "lost",
    "doubled",
    "repeated",
    "longest recovery",
    "took",
    "",
]


def table(figures: Iterable[Figures]) -> str:
    """All figures as a table of Markdown."""
    rows = [_HEAD, *(each.row() for each in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)
