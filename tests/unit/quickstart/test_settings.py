from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import ValidationError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """``worker.settings`` as the quickstart imports it, forgotten afterwards."""
    monkeypatch.syspath_prepend(ROOT / "examples" / "quickstart")
    yield importlib.import_module("worker.settings")
    for name in [name for name in sys.modules if name.partition(".")[0] == "worker"]:
        del sys.modules[name]


def test_every_setting_is_documented_with_its_default(module: ModuleType) -> None:
    page = (ROOT / "docs" / "quickstart.md").read_text("utf-8")
    rows = re.findall(r"^\| `([A-Z_]+)` \|([^|]*)\|", page, re.MULTILINE)
    documented = {name: default.strip(" `") for name, default in rows}
    fields = module.Settings.model_fields
    defaults = {
        name.upper(): "" if field.default is None else str(field.default) for name, field in fields.items()
    }
    assert documented == {"CELERY_BROKER_URL": "sqlite:///celery.db", **defaults}


def test_environment_is_validated(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAILURE_RATE", "0.5")
    monkeypatch.setenv("MAX_RETRIES", "")
    settings = module.Settings.from_environment()
    assert (settings.failure_rate, settings.max_retries) == (0.5, 3)
    for name, value in [("FAILURE_RATE", "2"), ("SMTP_URL", "mail.example.com"), ("HEARTBEAT_SECONDS", "0")]:
        with monkeypatch.context() as context:
            context.setenv(name, value)
            with pytest.raises(ValidationError, match=name.lower()):
                module.Settings.from_environment()
