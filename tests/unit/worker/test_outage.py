"""A broker that is away for an hour does not fill the log."""

from __future__ import annotations

import logging

import pytest

from celeriac.errors import BrokerUnavailable
from celeriac.worker.outage import Outage


class Clock:
    """A clock that the test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def fail(outage: Outage, clock: Clock, said: str, seconds: int) -> None:
    """Fail every two seconds for so long."""
    for _ in range(0, seconds, 2):
        outage.failed(BrokerUnavailable(said), 2.0)
        clock.now += 2


def test_an_outage_is_told_once_a_minute_and_its_end_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "celeriac.worker.fetcher")
    clock = Clock()
    outage = Outage(clock)
    outage.over()
    fail(outage, clock, "nobody is there", 180)
    outage.over()
    outage.over()
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [
        *[("ERROR", "Cannot receive, trying again until it works: nobody is there")] * 3,
        ("WARNING", "Receives again, after 180 seconds."),
    ]


def test_what_is_new_is_told_at_once(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    outage = Outage(clock)
    for said in ("nobody is there", "it does not answer"):
        fail(outage, clock, said, 6)
    outage.over()
    fail(outage, clock, "it does not answer", 6)
    assert [each.getMessage().rpartition(": ")[2] for each in caplog.records] == [
        "nobody is there",
        "it does not answer",
        "Receives again, after 12 seconds.",
        "it does not answer",
    ]
