"""A session with ZooKeeper in which nothing waits without a deadline."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

from kazoo.client import KazooClient, KazooState
from kazoo.exceptions import KazooException, NodeExistsError, NoNodeError, NotEmptyError, SessionExpiredError
from kazoo.handlers.threading import KazooTimeoutError
from kazoo.retry import KazooRetry

__all__ = ["Check", "Create", "Delete", "Session", "Step"]

#: Its driver would tell of each attempt to connect.
_quiet = logging.getLogger("celeriac.brokers.zookeeper.driver")
_quiet.setLevel(logging.CRITICAL)

#: What tells about a node, and not that something is wrong.
_ANSWERS = (NoNodeError, NodeExistsError, NotEmptyError)

#: How much goes with one request: the servers take some 1,000,000 bytes.
_BYTES = 300_000
_STEPS = 100


class Create(NamedTuple):
    """Make a node; ``numbered``: ZooKeeper completes its name."""

    path: str
    value: bytes
    numbered: bool = False


class Delete(NamedTuple):
    """Remove a node."""

    path: str


class Check(NamedTuple):
    """See that a node is there."""

    path: str


Step = Sequence[Create | Delete | Check]


class Session:
    """One session, from :meth:`start` on.

    Args:
        hosts: Servers and ports, of which one is enough.
        timeout: Seconds of silence after which the servers end the session, and remove what it holds.
        patience: Seconds that anything may take.
    """

    def __init__(self, hosts: Sequence[tuple[str, int]], timeout: float, patience: float) -> None:
        self._hosts = hosts
        self._patience = patience
        self._connected = threading.Event()
        self._lost = False
        # A server that is back is found within half a second; by default the pauses would double without an end.
        retry = KazooRetry(max_tries=-1, delay=0.1, backoff=2, max_delay=0.5)
        self.client = KazooClient(
            ",".join(f"{host}:{port}" for host, port in hosts),
            timeout=timeout,
            connection_retry=retry,
            logger=_quiet,
        )
        self.client.add_listener(self._listen)

    def start(self) -> None:
        """Connect. Raises OSError with what the network says where no server is there."""
        trouble: OSError | None = None
        for (
            address
        ) in self._hosts:  # the driver itself knocks on and on, and then does not say why it gave up
            try:
                socket.create_connection(address, timeout=self._patience).close()
            except OSError as exc:
                trouble = exc
            else:
                trouble = None
                break
        if trouble is not None:
            raise trouble
        try:
            self.client.start(timeout=self._patience)
        except KazooTimeoutError as exc:
            raise KazooTimeoutError("the session was not granted in time") from exc

    def stop(self) -> None:
        """End the session, so that others see at once that this client is gone."""
        self.client.remove_listener(self._listen)
        with contextlib.suppress(KazooException, KazooTimeoutError, OSError):
            self.client.stop()
        self.client.close()

    def check(self) -> None:
        """Raise where there is no connection, nor one soon. What is asked then would happen at some later time."""
        if self._lost:
            raise SessionExpiredError("the session has ended")
        if not self._connected.wait(self._patience):
            raise KazooTimeoutError("there has been no connection for a while")

    def all(self, asked: Iterable[Any]) -> list[Any]:
        """The answers, in order. A node that is missing, there already or not empty is an answer.

        Raises the first error of another kind, once all are there.
        """
        deadline = time.monotonic() + self._patience
        answers: list[Any] = []
        for each in list(asked):  # all of them are sent before the first is waited for
            try:
                answers.append(each.get(timeout=max(0.0, deadline - time.monotonic())))
            except _ANSWERS as exc:
                answers.append(exc)
        return answers

    def children(self, path: str) -> list[str]:
        """The names in a folder; none where there is no folder."""
        (found,) = self.all([self.client.get_children_async(path)])
        return [] if isinstance(found, Exception) else list(found)

    def watched(self, path: str, changed: Callable[[Any], None]) -> list[str] | None:
        """The names in a folder, of whose next change ``changed`` is told, once, in another thread.

        ``None`` where there is no folder.
        """
        (found,) = self.all([self.client.get_children_async(path, watch=changed)])
        return None if isinstance(found, Exception) else list(found)

    def ensure(self, path: str) -> None:
        """Make a folder, and those that it is in."""
        self.all([self.client.ensure_path_async(path)])

    def steps(self, steps: Iterable[Step]) -> list[list[Any]]:
        """Take steps, each of which happens as a whole or not at all, many with one request.

        The answers are by step and action; where a step was hindered, an exception stands for the action that did it.
        """
        chunks = list(_chunks(steps))
        answers = self.all(self._transaction(chunk).commit_async() for chunk in chunks)
        hindered = [
            step for chunk, answer in zip(chunks, answers, strict=True) if _failed(answer) for step in chunk
        ]
        alone = iter(self.all(self._transaction([step]).commit_async() for step in hindered))
        found: list[list[Any]] = []
        for chunk, answer in zip(chunks, answers, strict=True):
            parts = iter(answer)
            for step in chunk:
                found.append(next(alone) if _failed(answer) else list(islice(parts, len(step))))
        return found

    def _transaction(self, steps: Iterable[Step]) -> Any:
        transaction = self.client.transaction()
        for each in chain.from_iterable(steps):
            if isinstance(each, Create):
                transaction.create(each.path, each.value, sequence=each.numbered)
            elif isinstance(each, Delete):
                transaction.delete(each.path)
            else:
                transaction.check(each.path, -1)  # whatever its version
        return transaction

    def _listen(self, state: str) -> None:
        if state == KazooState.CONNECTED:
            self._connected.set()
        else:
            self._connected.clear()
            self._lost = self._lost or state == KazooState.LOST


def _chunks(steps: Iterable[Step]) -> Iterator[list[Step]]:
    chunk: list[Step] = []
    size = 0
    for step in steps:
        length = sum(len(each.value) for each in step if isinstance(each, Create))
        if chunk and (size + length > _BYTES or len(chunk) >= _STEPS):
            yield chunk
            chunk, size = [], 0
        chunk.append(step)
        size += length
    if chunk:
        yield chunk


def _failed(answers: Sequence[Any]) -> bool:
    return any(isinstance(each, Exception) for each in answers)
