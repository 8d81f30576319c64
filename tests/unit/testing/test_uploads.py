"""Files of exposed tasks in a test: they wait in memory."""

from __future__ import annotations

import os
from asyncio import to_thread
from pathlib import Path

import pytest
from fastapi import FastAPI, UploadFile
from httpx import ASGITransport, AsyncClient

from celeriac import Celery
from celeriac.testing import in_memory


async def test_uploads_and_their_keys_stay_in_memory(
    celery: Celery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    app, router = FastAPI(), celery.router(insecure=True)

    @celery.task
    async def count(file: UploadFile) -> int:
        return len(await file.read())

    router.expose(count, "/counts")
    app.include_router(router, prefix="/tasks")
    transport = ASGITransport(app=app)
    async with (
        in_memory(celery, app=app) as tasks,
        AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        twice = [
            await client.post(
                "/tasks/counts", files={"file": ("a.txt", b"12345")}, headers={"Idempotency-Key": "one"}
            )
            for _ in range(2)
        ]
        await tasks.idle()
        assert [answer.status_code for answer in twice] == [202, 202]
        assert len({answer.json()["task_id"] for answer in twice}) == len(tasks.enqueued) == 1
        assert await celery.handle(twice[0].json()["task_id"]).result() == 5
        tasks.assert_enqueued(count)
    assert await to_thread(os.listdir, tmp_path) == []
