"""A process finds out that nobody could write for a while."""

from __future__ import annotations

import pytest

from celeriac.sql.stalls import Sparing, Stall, Stalls


class Clocks:
    """The time of day, and the time that this machine was awake."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.awake = 50.0

    def run(self, seconds: float) -> None:
        self.now += seconds
        self.awake += seconds

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def stalls_by(clocks: Clocks) -> Stalls:
    return Stalls(lambda: clocks.now, lambda: clocks.awake)


def test_a_transaction_that_takes_long_is_one_from_its_beginning_on() -> None:
    clocks = Clocks()
    stalls = stalls_by(clocks)
    seen: list[Stall] = []

    def transact() -> None:
        clocks.run(0.4)
        seen.append(stalls.last())
        clocks.run(3.0)
        seen.append(stalls.last())
        clocks.run(1.0)

    stalls.timed(transact)
    assert seen == [Stall(), pytest.approx(Stall(1_000.0, 1_003.4))]
    assert stalls.last() == pytest.approx(Stall(1_000.0, 1_004.4))
    clocks.run(100)
    stalls.timed(lambda: clocks.run(0.1))
    assert stalls.last() == pytest.approx(Stall(1_000.0, 1_004.4))


def test_a_machine_that_slept_between_two_transactions_has_let_nobody_write() -> None:
    clocks = Clocks()
    stalls = stalls_by(clocks)
    stalls.timed(lambda: clocks.run(0.1))
    clocks.run(20)
    assert stalls.last() == Stall()
    clocks.run(2)
    clocks.sleep(3_600)
    assert stalls.last() == pytest.approx(Stall(1_022.1, 4_622.1))
    assert Sparing().spares(stalls.last(), 30.0, clocks.now)
    clocks.run(20)
    assert stalls.last() == pytest.approx(Stall(1_022.1, 4_622.1))
    assert not Sparing().spares(stalls.last(), 30.0, clocks.now)


def test_a_clock_that_is_put_back_is_no_stall() -> None:
    clocks = Clocks()
    stalls = stalls_by(clocks)
    clocks.sleep(-30)
    assert stalls.last() == Stall()
    clocks.run(30)
    assert stalls.last() == Stall()
