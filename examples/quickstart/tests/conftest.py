"""What the quickstart's tests share: celery in memory, and a client of the API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from httpx import ASGITransport, AsyncClient

from celeriac.testing import InMemory, InMemoryTasks
from main import app
from worker.celery_app import celery
from worker.settings import settings


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No failures on purpose, and no mail where the app would leave it."""
    monkeypatch.setattr(settings, "failure_rate", 0.0)
    monkeypatch.setattr(settings, "smtp_url", None)
    monkeypatch.setattr(settings, "outbox", tmp_path / "outbox")


@pytest.fixture
async def tasks(celery_in_memory: Callable[..., InMemory]) -> AsyncIterator[InMemoryTasks]:
    """Celery in this process's memory, and a worker on the test's event loop."""
    async with celery_in_memory(celery, app=app) as tasks:
        yield tasks


@pytest.fixture
async def client(tasks: InMemoryTasks) -> AsyncIterator[AsyncClient]:
    """The API, without a server."""
    async with AsyncClient(transport=ASGITransport(app=app), base_url="http://test") as client:
        yield client
