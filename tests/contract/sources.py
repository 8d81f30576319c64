"""What tests of transports of kombu's have in common: messages, takers in this process and in others."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import kombu

from celeriac.brokers.kombu_sources.base import Outgoing, Source, Taken
from celeriac.protocol import envelope
from celeriac.testing.contract.messages import publication

_SCRIPT = str(Path(__file__).with_name("source_process.py"))


def outgoing(queue: str, *names: object, priority: int = 0) -> list[Outgoing]:
    """Messages that have these names."""
    return [Outgoing(queue, publication(str(name)).message, priority) for name in names]


def names(taken: Sequence[Taken]) -> list[str]:
    """Their names."""
    return [str(envelope.decode(bytes(each.envelope)).headers["id"]) for each in taken]


def collect(source: Source, queue: str, count: int, patience: float = 20.0) -> list[Taken]:
    """Take so many, and no more are there at once."""
    taken: list[Taken] = []
    deadline = time.monotonic() + patience
    while len(taken) < count and time.monotonic() < deadline:
        taken += source.take([queue], 1000, 1.0)
    assert len(taken) == count, names(taken)
    return taken


@contextlib.contextmanager
def opened(*sources: Source) -> Iterator[None]:
    """They are open, and closed at the end."""
    with contextlib.ExitStack() as stack:
        for source in sources:
            stack.callback(source.close)
            source.open()
        yield


@contextlib.contextmanager
def holder(source: Source, queue: str, count: int) -> Iterator[subprocess.Popen[str]]:
    """Another process that has taken so many, until it is killed."""
    kind = type(source)
    words = [f"{kind.__module__}:{kind.__name__}", source.url, json.dumps(source.options), queue, str(count)]
    process = subprocess.Popen(
        [sys.executable, _SCRIPT, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def stock(url: str, queue: str, **options: object) -> Iterator[kombu.simple.SimpleQueue]:
    """kombu's own client."""
    with (
        kombu.Connection(url, transport_options=options) as connection,
        connection.SimpleQueue(queue) as simple,
    ):
        yield simple
        if url.startswith("zookeeper:"):  # kombu leaves the session open
            simple.channel.client.stop()
