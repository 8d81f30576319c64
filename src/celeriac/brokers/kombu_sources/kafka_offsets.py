"""Which offset of a partition may be committed: a group keeps one number, and all before it counts as done."""

from __future__ import annotations

from collections.abc import Collection, Iterable

__all__ = ["Partition", "Record"]

#: An offset, and the timestamp of the message there: a topic that is made anew begins again with its offsets.
Record = tuple[int, int]


class Partition:
    """What of one partition was handed over, for as long as it is assigned to this consumer.

    Args:
        known: Records that are done although the group does not know it yet: they are not handed over again.
    """

    __slots__ = ("_after", "_committed", "_done", "_held", "_known", "_rewound")

    def __init__(self, known: Iterable[Record] = ()) -> None:
        self._held: set[int] = set()  # handed over, neither done nor given back
        self._rewound: set[int] = set()  # given back, and not read again yet
        self._done: set[Record] = set()  # done, and not committed
        self._known = set(known)
        self._after = -1  # one more than the highest offset that was read
        self._committed = -1

    def take(self, record: Record) -> bool:
        """Whether a record that was read is to be handed over, which then counts as done."""
        offset = record[0]
        again = offset in self._rewound
        self._rewound = {
            each for each in self._rewound if each > offset
        }  # those before it are not there any more
        if offset < self._after and not again:
            return False  # read for the sake of one before it that was given back
        self._after = max(self._after, offset + 1)
        if record in self._known:
            self._done.add(record)
            return False
        self._held.add(offset)
        return True

    def know(self, records: Iterable[Record]) -> None:
        """These are done, too: not to be handed over if they are read."""
        self._known.update(records)

    def finish(self, record: Record) -> None:
        """The record is done."""
        if record[0] in self._held:
            self._held.discard(record[0])
            self._done.add(record)

    def give_back(self, offsets: Collection[int]) -> int | None:
        """The records are to be read again. Returns from where; ``None`` where none of them is held."""
        back = self._held.intersection(offsets)
        self._held -= back
        self._rewound |= back
        return min(self._rewound) if back else None

    def begin(self, offset: int) -> None:
        """Reading begins here, unless it has begun."""
        self._after = max(self._after, offset)

    @property
    def next(self) -> int | None:
        """The offset that is read next; ``None`` where that is not known."""
        return min(self._rewound, default=self._after) if self._after >= 0 else None

    @property
    def committable(self) -> int | None:
        """The offset of the first record that is not done; ``None`` if the group knows it."""
        first = min(min(self._held, default=self._after), min(self._rewound, default=self._after))
        return first if first > self._committed and self._done else None

    def committed(self, offset: int) -> None:
        """The group knows that all before ``offset`` is done."""
        self._committed = offset
        self._done = {record for record in self._done if record[0] >= offset}
        self._known = {record for record in self._known if record[0] >= offset}

    @property
    def uncommitted(self) -> frozenset[Record]:
        """What is done, though the group does not know."""
        return frozenset(self._done | self._known)
