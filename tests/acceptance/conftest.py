"""Fixtures for tests that run real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.acceptance.processes import Launcher
from tests.acceptance.quickstart import Quickstart


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    """Starts processes; all of them are gone after the test."""
    launcher = Launcher()
    try:
        yield launcher
    finally:
        launcher.clean_up()


@pytest.fixture
def quickstart(tmp_path: Path, launcher: Launcher) -> Quickstart:
    """A fresh copy of the quickstart; nothing of it runs yet."""
    return Quickstart(tmp_path / "quickstart", launcher)
