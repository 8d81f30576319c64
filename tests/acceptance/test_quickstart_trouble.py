"""What the quickstart shows when things go wrong: retries, and a mail server that is away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Message
from tests.acceptance.processes import free_port
from tests.acceptance.quickstart import Quickstart


class Inbox(Message):
    """An SMTP server's handler that keeps what it is given, and refuses for now as often as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[object] = []
        self.deferrals = 0

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, _server: Any, _session: Any, envelope: Any, address: str, _options: Any
    ) -> str:
        if self.deferrals:
            self.deferrals -= 1
            return "451 4.3.0 Try again later"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    def handle_message(self, message: object) -> None:
        self.messages.append(message)


@pytest.fixture
def smtp() -> Iterator[Controller]:
    """An SMTP server that is not started yet."""
    controller = Controller(Inbox(), hostname="127.0.0.1", port=free_port())
    yield controller
    controller.stop(no_assert=True)


def test_failures_on_purpose_are_retried_and_then_final(quickstart: Quickstart) -> None:
    quickstart.env |= {"FAILURE_RATE": "1", "MAX_RETRIES": "2", "DEFAULT_RETRY_DELAY": "0"}
    quickstart.start_worker()
    quickstart.start_api()
    task_id = quickstart.process_data("a\n1")
    status = quickstart.wait_for_status(task_id)
    assert status["status"] == "FAILURE"
    assert status["result"] == "Task failed: SimulatedOutage - The data service did not answer."
    attempts = quickstart.record(task_id)["attempts"]
    assert [attempt["state"] for attempt in attempts] == ["RETRY", "RETRY", "FAILURE"]


def test_a_retry_to_come_is_shown(quickstart: Quickstart) -> None:
    quickstart.env |= {"FAILURE_RATE": "1", "DEFAULT_RETRY_DELAY": "3600"}
    quickstart.start_worker()
    quickstart.start_api()
    status = quickstart.wait_for_status(quickstart.process_data("a\n1"), "RETRY")
    assert status["result"] == "Task will be retried: SimulatedOutage - The data service did not answer."


def test_mail_is_delivered_once_its_server_is_there(quickstart: Quickstart, smtp: Controller) -> None:
    quickstart.env["SMTP_URL"] = f"smtp://127.0.0.1:{smtp.port}"
    quickstart.start_worker()
    quickstart.start_api()
    task_id = quickstart.post(
        "/send-notification", {"recipient": "ada@example.com", "subject": "Größe", "body": "Hello!"}
    )
    quickstart.wait_for_status(task_id, "RETRY")  # nobody listens there yet
    smtp.handler.deferrals = 1  # and then somebody who is busy
    smtp.start()
    receipt = quickstart.wait_for_status(task_id)
    assert receipt["status"] == "SUCCESS", receipt
    (message,) = smtp.handler.messages
    assert message["Message-ID"] == receipt["result"]["message_id"]
    assert message["X-RcptTo"] == "ada@example.com"
    assert not quickstart.outbox.exists()
    errors = [attempt["error"] for attempt in quickstart.record(task_id)["attempts"]]
    assert any("MailDeferred" in str(error) for error in errors)
