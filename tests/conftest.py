"""What every test gets: a loop that must not be blocked, and databases in folders of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from tests.services import (
    certificates,
    kafka,
    kafka_queue,
    kafka_server,
    rabbitmq,
    rabbitmq_server,
    rabbitmq_url,
    redis_sentinel,
    redis_server,
    redis_url,
    sqs,
    sqs_options,
    sqs_server,
    zookeeper,
    zookeeper_server,
    zookeeper_url,
)

__all__ = [
    "certificates",
    "database_url",
    "kafka",
    "kafka_queue",
    "kafka_server",
    "rabbitmq",
    "rabbitmq_server",
    "rabbitmq_url",
    "redis_sentinel",
    "redis_server",
    "redis_url",
    "sqs",
    "sqs_options",
    "sqs_server",
    "zookeeper",
    "zookeeper_server",
    "zookeeper_url",
]


@pytest.fixture(autouse=True)
def _no_blocking_calls() -> Iterator[BlockBuster | None]:
    """Fail a test in which celeriac blocks the event loop."""
    with blockbuster_ctx("celeriac") as guard:
        # Imports inside the loop read files, once; the log writes where it is told.
        yield guard


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """A SQLite file that nobody else uses."""
    return f"sqlite:///{tmp_path / 'celery.db'}"
