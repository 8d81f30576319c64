"""When the broker may drop a message that nobody has taken."""

from __future__ import annotations

import pytest

from celeriac.transports import routing


@pytest.mark.parametrize(("task", "earliest"), [("add", 130.0), (None, 100.0)])
def test_a_task_that_has_expired_is_left_to_the_workers_for_a_while(
    task: str | None, earliest: float
) -> None:
    """Celery publishes what is to expire with a TTL of 0 milliseconds; a worker has to get it to say REVOKED."""
    message = {"headers": {"task": task}, "properties": {"expiration": "0"}, "body": ""}
    expires = routing.draft(message, "celery", now=100.0).expires
    assert expires is not None
    assert expires == 100.0 if task is None else expires > earliest
