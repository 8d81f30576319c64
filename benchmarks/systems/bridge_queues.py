"""Queues on kombu's transports: in a folder, or on a server that is started for a while."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from confluent_kafka import KafkaException
from tests.services.kafka import running_kafka
from tests.services.sqs import SQSServer, running_sqs

from celeriac.brokers.kombu_transports import source_class

__all__ = ["MakeQueue", "Queue", "Unavailable", "serving"]


class Unavailable(Exception):
    """There is no such server here."""


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue that nobody has used. ``size`` is how much is in it, or held by a worker that will have to delete it."""

    url: str
    name: str
    size: Callable[[], int]
    close: Callable[[], None]
    options: Mapping[str, Any] = field(default_factory=dict)


#: Makes a queue; the folder is empty, and its own.
MakeQueue = Callable[[Path], Queue]


@contextlib.contextmanager
def serving(transport: str) -> Iterator[MakeQueue]:
    """What makes queues on a transport, as long as this is open. Raises Unavailable without its server."""
    with contextlib.ExitStack() as stack:
        try:
            make = _FOLDERS.get(transport) or stack.enter_context(_SERVERS[transport]())
        except pytest.skip.Exception as exc:
            raise Unavailable(str(exc)) from exc
        yield make


def _seen_by_ours(url: str, name: str, options: Mapping[str, Any] | None = None) -> Queue:
    source = source_class(url)(url, options=options)
    source.open()
    return Queue(url, name, lambda: source.size(name), source.close, options or {})


def _in_sqlite(folder: Path) -> Queue:
    return _seen_by_ours(f"sqla+sqlite:///{folder / 'broker.db'}", "celery")


def _in_files(folder: Path) -> Queue:
    data = folder / "data"
    data.mkdir()
    options = {"data_folder_in": str(data), "data_folder_out": str(data)}
    return _seen_by_ours("filesystem://", "celery", options)


@contextlib.contextmanager
def _kafka() -> Iterator[MakeQueue]:
    with running_kafka() as server:
        # What is read and not committed is in it. A topic of a known name would find its group's offsets.
        yield lambda _: _patient(_seen_by_ours(server.url, _new_name()))


def _patient(queue: Queue) -> Queue:
    """Ask again while the coordinator of Kafka's groups starts, which is when it is first asked."""

    def size() -> int:
        deadline = time.monotonic() + 30
        while True:
            try:
                return queue.size()
            except KafkaException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    return replace(queue, size=size)


@contextlib.contextmanager
def _sqs() -> Iterator[MakeQueue]:
    with running_sqs() as server:
        yield lambda _: _on_sqs(server)


def _on_sqs(server: SQSServer) -> Queue:
    client = boto3.client(
        "sqs",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )
    name = _new_name()
    # As kombu makes it. Ours has its own opinion, for each message.
    url = client.create_queue(QueueName=name, Attributes={"VisibilityTimeout": "1800"})["QueueUrl"]

    def size() -> int:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        counted = client.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
        return sum(int(counted[each]) for each in names)

    return Queue(server.url, name, size, client.close, {"region": "us-east-1", "is_secure": False})


def _new_name() -> str:
    return f"bench-{secrets.token_hex(4)}"


_FOLDERS: dict[str, MakeQueue] = {"sqla+sqlite": _in_sqlite, "filesystem": _in_files}
_SERVERS = {"sqs": _sqs, "confluentkafka": _kafka}
