"""The same behaviour over both storages: a SQLite file, and memory."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import kombu
import pytest

from celeriac.transports import register

register()

Connect = Callable[..., kombu.Connection]


@pytest.fixture(params=["sqlite", "memory"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Opens connections, with transport options as keywords, to queues that this test has to itself."""
    if request.param == "sqlite":
        url, options = request.getfixturevalue("database_url"), {}
    else:
        url, options = f"memory://{uuid4()}", {"transport": "celeriac-memory"}
    with contextlib.ExitStack() as stack:

        def open_connection(**transport_options: Any) -> kombu.Connection:
            connection = kombu.Connection(url, transport_options=transport_options, **options)
            return stack.enter_context(connection)

        yield open_connection


class Drain:
    """A consumer that keeps what it gets, without settling it."""

    def __init__(self, connection: kombu.Connection, queue: kombu.Queue, **options: Any) -> None:
        self.messages: list[Any] = []
        self._connection = connection
        self.channel = options.pop("channel", None) or connection.default_channel
        self.consumer = kombu.Consumer(self.channel, [queue], on_message=self._keep, **options)
        self.consumer.consume()

    def _keep(self, message: Any) -> None:
        self.messages.append(message)

    def wait(self, count: int, timeout: float = 5.0) -> list[Any]:
        """Drain until ``count`` messages have come."""
        while len(self.messages) < count:
            self._connection.drain_events(timeout=timeout)
        return self.messages

    def settle_down(self, timeout: float = 0.05) -> list[Any]:
        """Drain until nothing comes any more."""
        with contextlib.suppress(socket.timeout):
            while True:
                self._connection.drain_events(timeout=timeout)
        return self.messages


def publish(connection: kombu.Connection, body: Any, queue: str = "q", **options: Any) -> None:
    """Publish straight to a queue."""
    connection.Producer().publish(body, **{"exchange": "", "routing_key": queue, **options})
