"""The short version of ``python -m tests.acceptance.endurance``: nothing is gathered over some thousand tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.acceptance.endurance import BROKERS, Endurance
from tests.acceptance.processes import Launcher


@pytest.mark.parametrize("broker", ["redis", "sqlite"])
def test_neither_worker_nor_api_grows(broker: str, tmp_path: Path, launcher: Launcher) -> None:
    said: list[str] = []
    with BROKERS[broker]() as place:
        endurance = Endurance(tmp_path / "endurance", launcher, place.env)
        endurance.run(10_000, 5, place.cut, said.append)
    assert not endurance.growth(), said
    assert endurance.counts["succeed"] >= 8_200
    assert endurance.counts["fail"] >= 500
