"""An app that points at a server that is not there, as a test's app may."""

from __future__ import annotations

from uuid import uuid4

import pytest

from celeriac import Celery


@pytest.fixture
def celery(monkeypatch: pytest.MonkeyPatch) -> Celery:
    # The environment wins against an app's own settings, and in a test nothing may come of it.
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "redis://127.0.0.1:1/0")
    app = Celery(f"app_{uuid4().hex[:6]}", set_as_current=False)
    app.finalize()  # here, because it reads files
    assert app.conf.timezone == "UTC"
    return app
