"""An app with an uploads folder of its own, and a worker on the test's loop."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from fastapi import UploadFile
from starlette.datastructures import Headers

from celeriac import Celery
from celeriac.worker.embedded import run_embedded

Working = Callable[[], AbstractAsyncContextManager[None]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "uploads"


@pytest.fixture
def celery(folder: Path) -> Celery:
    url = f"memory://{uuid4()}"
    app = Celery("unit", broker=url, backend=url, set_as_current=False)
    app.conf.celeriac_shutdown_grace = 1.0
    app.conf.celeriac_upload_url = str(folder)
    _ = app.conf.broker_url  # reads the configuration, outside of the loop
    return app


@pytest.fixture
def working(celery: Celery) -> Working:
    @asynccontextmanager
    async def work() -> AsyncIterator[None]:
        async with celery, run_embedded(celery, concurrency=10):
            yield

    return work


def upload(content: bytes = b"hello", filename: str | None = "a.txt", kind: str = "text/plain") -> UploadFile:
    return UploadFile(io.BytesIO(content), filename=filename, headers=Headers({"content-type": kind}))
