"""Which signal ends a worker how, by what Celery documents for stopping one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest
from celery.platforms import EX_FAILURE, EX_OK

from celeriac.worker import shutdown as module
from celeriac.worker.shutdown import Shutdown


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing to one blocks, which the tests' loop refuses."""
    monkeypatch.setattr(sys, "__stdout__", None)


async def test_sigterm_is_warm_and_sigquit_cold() -> None:
    term, quit_ = Shutdown("a@b"), Shutdown("a@b")
    with term.on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(term.warm.wait(), 5)
    assert not term.cold.is_set()
    assert term.exitcode == EX_OK
    with quit_.on_signals():
        os.kill(os.getpid(), signal.SIGQUIT)
        await asyncio.wait_for(quit_.cold.wait(), 5)
    assert quit_.warm.is_set()
    assert quit_.exitcode == EX_FAILURE


async def test_remap_sigterm_makes_sigterm_cold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMAP_SIGTERM", "SIGQUIT")
    shutdown = Shutdown("a@b")
    with shutdown.on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(shutdown.cold.wait(), 5)


async def test_a_soft_timeout_gives_running_tasks_time_before_the_cold_end() -> None:
    shutdown = Shutdown("a@b", soft_timeout=0.2)
    with shutdown.on_signals():
        os.kill(os.getpid(), signal.SIGQUIT)
        await asyncio.wait_for(shutdown.warm.wait(), 5)
        assert not shutdown.cold.is_set()
        await asyncio.wait_for(shutdown.cold.wait(), 5)


async def test_a_second_sigquit_does_not_wait_for_the_soft_timeout() -> None:
    shutdown = Shutdown("a@b", soft_timeout=60)
    with shutdown.on_signals():
        os.kill(os.getpid(), signal.SIGQUIT)
        await asyncio.wait_for(shutdown.warm.wait(), 5)
        os.kill(os.getpid(), signal.SIGQUIT)
        await asyncio.wait_for(shutdown.cold.wait(), 5)
