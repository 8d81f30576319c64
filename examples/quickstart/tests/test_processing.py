"""Processing data: accepted, done in the background, tried again after an outage."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from httpx import AsyncClient

from celeriac.testing import InMemoryTasks, in_memory
from main import app
from worker.celery_app import celery
from worker.settings import settings
from worker.tasks import SimulatedOutage, process_data

DATA = {"user_id": 42, "payload": "name,age\nAda,36\nAlan,41"}


async def test_data_is_summarized(client: AsyncClient, tasks: InMemoryTasks) -> None:
    response = await client.post("/process-data", json=DATA)
    assert response.status_code == 202

    await tasks.idle()

    status = (await client.get(f"/task-status/{response.json()['task_id']}")).json()
    assert status["status"] == "SUCCESS"
    assert status["result"]["rows"] == 2
    assert status["result"]["columns"]["age"]["mean"] == 38.5


async def test_an_outage_is_waited_out(
    client: AsyncClient, tasks: InMemoryTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "failure_rate", 1.0)
    task_id = (await client.post("/process-data", json=DATA)).json()["task_id"]
    await tasks.idle()
    assert (await celery.handle(task_id).record()).state == "RETRY"

    monkeypatch.setattr(settings, "failure_rate", 0.0)
    await tasks.clock.advance(seconds=settings.default_retry_delay)

    record = await celery.handle(task_id).record()
    assert (record.state, record.retries) == ("SUCCESS", 1)


@pytest.mark.celeriac(mode="inline")
async def test_an_outage_that_lasts_is_a_failure(
    tasks: InMemoryTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "failure_rate", 1.0)
    handle = await process_data.enqueue(42, "name\nAda")  # returns when the last attempt has failed

    with pytest.raises(SimulatedOutage):
        await handle.result()
    assert (await handle.record()).retries == settings.max_retries


def test_the_same_with_a_synchronous_client() -> None:
    with in_memory(celery, app=app) as tasks, TestClient(app) as client:
        response = client.post("/process-data", json=DATA)
        tasks.idle()
        status = client.get(f"/task-status/{response.json()['task_id']}").json()
    assert status["result"]["rows"] == 2
