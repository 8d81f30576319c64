"""The tasks of the quickstart."""

from __future__ import annotations

import asyncio
import os
import random
from datetime import timedelta
from typing import Any

from celery.utils.log import get_task_logger
from pydantic import BaseModel, EmailStr

from worker import mail
from worker.celery_app import celery
from worker.settings import settings
from worker.summary import ColumnSummary, parse, summarize

__all__ = ["clean_up_outbox", "heartbeat", "process_data", "send_notification"]

logger = get_task_logger(__name__)


class SimulatedOutage(ConnectionError):
    """Something that this task depends on was away for a moment (on purpose, to show a retry)."""


class Summary(BaseModel):
    """What a user's data holds."""

    user_id: int
    rows: int
    columns: dict[str, ColumnSummary]


class Receipt(BaseModel):
    """What became of a message: it was handed to a server, or written into a file."""

    recipient: str
    message_id: str
    sent_to: str


@celery.task(
    bind=True,
    autoretry_for=(SimulatedOutage,),
    max_retries=settings.max_retries,
    default_retry_delay=settings.default_retry_delay,
)
async def process_data(self: Any, user_id: int, payload: str) -> Summary:
    """Summarize CSV or JSON records. Bad data raises ValueError, which is final; an outage is tried again."""
    if random.random() < settings.failure_rate:
        raise SimulatedOutage("The data service did not answer.")
    # Large data takes a while: a thread parses it, and the event loop is free for other tasks.
    table = await asyncio.to_thread(parse, payload)
    columns: dict[str, ColumnSummary] = {}
    for name, values in table.items():
        columns[name] = await asyncio.to_thread(summarize, values)
        self.progress(len(columns), len(table), f"summarized {name}")
        await asyncio.sleep(settings.step_seconds)
    rows = len(next(iter(table.values())))
    logger.info("summarized %d rows of user %d", rows, user_id)
    return Summary(user_id=user_id, rows=rows, columns=columns)


@celery.task(bind=True, autoretry_for=(ConnectionError, TimeoutError), retry_backoff=True, max_retries=5)
async def send_notification(self: Any, recipient: EmailStr, subject: str, body: str) -> Receipt:
    """Send an e-mail over SMTP, or write it into the outbox. An unreachable server is tried again, ever more rarely."""
    message = mail.compose(
        sender=settings.mail_from, recipient=recipient, subject=subject, body=body, unique=self.request.id
    )
    if settings.smtp_url:
        server = mail.Server.from_url(settings.smtp_url)
        await mail.send(message, server)
        sent_to = server.host
    else:
        # Named after the task: should this run twice, there is one file all the same.
        path = await asyncio.to_thread(mail.write_to_outbox, message, settings.outbox, self.request.id)
        sent_to = str(path)
    logger.info("sent %s to %s by way of %s", message["Message-ID"], recipient, sent_to)
    return Receipt(recipient=recipient, message_id=message["Message-ID"], sent_to=sent_to)


@celery.task(bind=True, max_retries=3, default_retry_delay=60)
def clean_up_outbox(self: Any, keep_days: float = settings.outbox_keep_days) -> list[str]:
    """Delete old messages from the outbox. A plain ``def`` task, written as for any Celery; it runs in a thread."""
    try:
        removed = mail.remove_older_than(settings.outbox, timedelta(days=keep_days))
    except OSError as exc:
        raise self.retry(exc=exc)
    logger.info("clean-up %s removed %d messages", self.request.id, len(removed))
    return removed


@celery.task
async def heartbeat() -> dict[str, float]:
    """Show that beat and a worker are alive."""
    load = os.getloadavg()[0]
    logger.info("heartbeat: load %.2f", load)
    return {"load": load}
