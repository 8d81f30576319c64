"""Notifications: enqueued by the API, written into the outbox by the task."""

from __future__ import annotations

from unittest.mock import ANY

import pytest
from httpx import AsyncClient

from celeriac.testing import InMemoryTasks
from worker.settings import settings
from worker.tasks import process_data, send_notification

MAIL = {"recipient": "ada@example.com", "subject": "Hello", "body": "It works."}


@pytest.mark.celeriac(mode="held")
async def test_a_notification_is_enqueued(client: AsyncClient, tasks: InMemoryTasks) -> None:
    response = await client.post("/send-notification", json=MAIL)

    assert response.status_code == 202
    tasks.assert_enqueued(send_notification, "ada@example.com", "Hello", body=ANY)
    tasks.assert_not_enqueued(process_data)
    assert not settings.outbox.exists()  # nothing has run


async def test_a_notification_is_written_into_the_outbox(client: AsyncClient, tasks: InMemoryTasks) -> None:
    task_id = (await client.post("/send-notification", json=MAIL)).json()["task_id"]

    await tasks.idle()

    assert "It works." in (settings.outbox / f"{task_id}.eml").read_text()


async def test_what_is_no_address_is_refused(client: AsyncClient, tasks: InMemoryTasks) -> None:
    response = await client.post("/send-notification", json=MAIL | {"recipient": "nobody"})

    assert response.status_code == 422
    assert tasks.enqueued == []
