"""The short version of ``python -m tests.acceptance.endurance``: nothing is gathered, and nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.acceptance.endurance import BROKERS, Endurance
from tests.acceptance.processes import Launcher


@pytest.mark.parametrize("broker", ["redis", "sqlite"])
def test_neither_worker_nor_api_grows_and_all_tasks_are_started(
    broker: str, tmp_path: Path, launcher: Launcher
) -> None:
    said: list[str] = []
    with BROKERS[broker]() as place:
        endurance = Endurance(tmp_path / "endurance", launcher, place.env)
        endurance.run(10_000, 5, place.cut, said.append)
    assert not endurance.trouble(), said
