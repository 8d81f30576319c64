"""ZooKeeper, with the nodes and envelopes of kombu's ``zookeeper`` transport.

kombu reads a message and deletes it, so that who dies then has lost it. Here it is moved, in one transaction, to a
folder of the taker's, who deletes it there when it is kept elsewhere.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import uuid4

from kazoo.exceptions import KazooException, NoAuthError, NoNodeError, SessionExpiredError
from kazoo.handlers.threading import KazooTimeoutError

from celeriac.brokers.base import Capabilities
from celeriac.brokers.kombu_sources.base import Outgoing, Source, Taken
from celeriac.brokers.kombu_sources.envelopes import texts
from celeriac.brokers.kombu_sources.refusals import refused
from celeriac.brokers.kombu_sources.zookeeper_nodes import ENTRY, Nodes, hosts_of
from celeriac.brokers.kombu_sources.zookeeper_restoring import Place, read, restore, sweep
from celeriac.brokers.kombu_sources.zookeeper_session import Check, Create, Delete, Session
from celeriac.errors import BrokerUnavailable

__all__ = ["ZooKeeperSource"]

logger = logging.getLogger("celeriac.brokers.zookeeper")

#: Seconds that anything may take.
_PATIENCE = 5.0

#: Bytes of a request beside the message: its paths and the names of its parts.
_OVERHEAD = 1024

#: A queue that changes all the time is listed anew only after this many seconds, for the sake of higher priorities.
_LISTING = 0.2

#: Seconds after which takers are looked at, even if nothing is heard of them.
_SWEEPING = 30.0


class _Listing:
    """The names of the messages in a queue, as far as they were read."""

    def __init__(self) -> None:
        self.names: deque[str] = deque()
        self.changed = True
        self.at = 0.0

    @property
    def is_stale(self) -> bool:
        return self.changed and (not self.names or time.monotonic() > self.at + _LISTING)


class ZooKeeperSource(Source):
    """Puts nodes into folders, and moves them out.

    Args:
        url: ``zookeeper://host[:port]/root``, or several as ``zookeeper://host/root;zookeeper://other``.
        options: ``session_timeout`` in seconds (6), which is how long a taker that was killed keeps what it had;
            ``jute_maxbuffer`` in bytes (1048575), where the servers have another one.
        lease: Not used: what was taken is a session's.
    """

    capabilities = Capabilities(
        delay=False,
        lease=False,
        delivery_count=False,
        dead_letters=False,
        atomic=False,
        exchanges=False,
        fanout=False,
        peek=False,
        lists_bindings=False,
        any_text=False,
        any_size=False,
    )
    errors = (KazooException, KazooTimeoutError, OSError)

    def __init__(self, url: str, *, options: Mapping[str, Any] | None = None, lease: float = 30.0) -> None:
        super().__init__(url, options=options, lease=lease)
        self._largest = int(self.options.get("jute_maxbuffer") or 1_048_575) - _OVERHEAD
        self._nodes = Nodes(url, "")
        self._open: Session | None = None
        self._news = threading.Event()
        #: What is done, though the servers have not said that they know.
        self._unfinished: set[str] = set()
        self._reset()

    def open(self) -> None:
        """Begin a session."""
        self._reset()
        timeout = float(self.options.get("session_timeout") or 6.0)
        self._open = Session(hosts_of(self.url), timeout, _PATIENCE)
        self._open.start()

    def close(self) -> None:
        """End the session: others put back what was taken."""
        session, self._open = self._open, None
        if session is not None:
            session.stop()

    def put(self, messages: Sequence[Outgoing]) -> None:
        """Create the nodes, and wait until the servers have them."""
        drafts = [(self._nodes.queue(each.queue), *self._drafted(each)) for each in messages]
        session = self._session
        for queue in {queue for queue, *_ in drafts} - self._ensured:
            session.ensure(queue)
            self._ensured.add(queue)
        answers = self._create(drafts)
        missing = [
            draft for draft, answer in zip(drafts, answers, strict=True) if isinstance(answer, Exception)
        ]
        if missing:  # somebody has deleted the queue
            for queue in {queue for queue, *_ in missing}:
                session.ensure(queue)
            for answer in self._create(missing):
                if isinstance(answer, Exception):
                    raise answer

    def take(self, queues: Sequence[str], limit: int, wait: float) -> list[Taken]:
        """Move messages to this taker's folder, those of the highest priority first."""
        self._join(queues)
        deadline = time.monotonic() + wait
        while True:
            self._news.clear()
            if self._must_sweep or time.monotonic() > self._swept + _SWEEPING:
                self._sweep()
            taken = self._take(queues, limit)
            left = deadline - time.monotonic()
            if taken or left <= 0 or self.is_awake:
                return taken
            self._news.wait(min(left, 0.5))

    def finish(self, taken: Sequence[Taken]) -> None:
        """Delete what was moved."""
        session = self._session
        self._unfinished.update(each.handle.copy for each in taken)
        answers = session.steps([Delete(each.handle.copy)] for each in taken)
        self._unfinished.difference_update(each.handle.copy for each in taken)
        lost = sum(isinstance(answer, Exception) for (answer,) in answers)
        if lost:
            logger.warning("%d messages were put back before they were done: they come a second time.", lost)

    def give_back(self, taken: Sequence[Taken]) -> None:
        """Move messages to where they were."""
        restore(self._session, [(each.handle, each.envelope) for each in taken])

    def size(self, queue: str) -> int:
        """How many nodes are in the folder."""
        (found,) = self._session.all([self._session.client.exists_async(self._nodes.queue(queue))])
        return found.children_count if found is not None else 0

    def purge(self, queue: str) -> int:
        """Delete them."""
        path = self._nodes.queue(queue)
        names = [name for name in self._session.children(path) if name.startswith(ENTRY)]
        deleted = 0
        for start in range(0, len(names), 1000):  # each thousand has a deadline of its own
            steps = [[Delete(f"{path}/{name}")] for name in names[start : start + 1000]]
            deleted += sum(not isinstance(answer, Exception) for (answer,) in self._session.steps(steps))
        return deleted

    def wake(self) -> None:
        """Have ``take`` return what it has. From any thread."""
        super().wake()
        self._news.set()

    def explained(self, exc: BaseException) -> BrokerUnavailable:
        """The error that tells in one sentence what went wrong."""
        if isinstance(exc, NoAuthError):
            return refused(
                f"ZooKeeper at {self.place} does not let this client do that: grant it all permissions."
            )
        if isinstance(exc, KazooTimeoutError | OSError | KazooException) and not isinstance(
            exc, BrokerUnavailable
        ):
            said = str(exc).strip().rstrip(".") or type(exc).__name__
            return BrokerUnavailable(f"ZooKeeper at {self.place} cannot be reached: {said}.")
        return super().explained(exc)

    def _reset(self) -> None:
        self._nodes = Nodes(self.url, uuid4().hex)
        self._ensured: set[str] = set()
        self._joined: set[str] = set()
        self._listings: defaultdict[str, _Listing] = defaultdict(_Listing)
        self._must_sweep = True
        self._swept = 0.0
        self._turn = 0

    @property
    def _session(self) -> Session:
        if self._open is None:
            raise SessionExpiredError("the session has ended")
        self._open.check()
        return self._open

    def _drafted(self, outgoing: Outgoing) -> tuple[str, bytes]:
        """The beginning of a node's name, and what is in it."""
        if not outgoing.queue or any(part in {"", ".", ".."} for part in outgoing.queue.split("/")):
            raise refused(f"ZooKeeper takes no queue of the name {outgoing.queue!r}: it has to be a path.")
        given = outgoing.priority or outgoing.message.properties.get("priority") or 0
        priority = max(0, min(int(given), 9))
        value = texts([replace(outgoing, priority=priority)])[0].encode()
        if len(value) > self._largest:
            raise refused(
                f"A message of {len(value)} bytes for {outgoing.queue!r} is larger than ZooKeeper takes "
                f"({self._largest}): send less, or raise jute.maxbuffer of all servers and jute_maxbuffer in "
                "broker_transport_options."
            )
        return self._nodes.new_entry(priority), value

    def _create(self, drafts: Sequence[tuple[str, str, bytes]]) -> list[Any]:
        steps = [[Create(f"{queue}/{name}", value, numbered=True)] for queue, name, value in drafts]
        return [answer for (answer,) in self._session.steps(steps)]

    def _join(self, queues: Sequence[str]) -> None:
        """Be a taker, with a folder for each queue."""
        session = self._session
        if not self._joined:
            session.all(session.client.delete_async(copy) for copy in self._unfinished)
            self._unfinished.clear()
            session.all([session.client.create_async(self._nodes.me, ephemeral=True, makepath=True)])
        for queue in queues:
            if queue not in self._joined:
                session.ensure(self._nodes.queue(queue))
                session.ensure(self._nodes.taken_from(queue))
                self._joined.add(queue)

    def _take(self, queues: Sequence[str], limit: int) -> list[Taken]:
        """A fair share of each queue, and each in its turn the first one."""
        self._turn += 1
        begin = self._turn % len(queues) if queues else 0
        taken: list[Taken] = []
        for number, queue in enumerate([*queues[begin:], *queues[:begin]]):
            share = -(-(limit - len(taken)) // (len(queues) - number))
            while share > 0 and (names := self._next(queue, share)):
                moved = self._move(queue, names)
                taken += moved
                share -= len(moved)
        return taken

    def _next(self, queue: str, count: int) -> list[str]:
        listing = self._listings[queue]
        if listing.is_stale:
            listing.changed, listing.at = False, time.monotonic()
            path = self._nodes.queue(queue)
            names = self._session.watched(path, partial(self._queue_changed, listing))
            if names is None:  # somebody has deleted the queue
                self._session.ensure(path)
                listing.changed = True
            listing.names = deque(sorted(name for name in names or () if name.startswith(ENTRY)))
        return [listing.names.popleft() for _ in range(min(count, len(listing.names)))]

    def _move(self, queue: str, names: Sequence[str]) -> list[Taken]:
        """Take these messages, except those that somebody else was quicker to take."""
        session = self._session
        places = [
            Place(f"{self._nodes.taken_from(queue)}/{name}", f"{self._nodes.queue(queue)}/{name}")
            for name in names
        ]
        there = read(session, places, lambda place: place.entry)
        steps = [
            (Check(self._nodes.me), Create(place.copy, value), Delete(place.entry)) for place, value in there
        ]
        taken = []
        for (place, value), (alive, *_, deleted) in zip(there, session.steps(steps), strict=True):
            if isinstance(alive, NoNodeError):
                raise SessionExpiredError("the session has ended")
            if not isinstance(deleted, Exception):
                taken.append(Taken(queue, value, place))
        return taken

    def _sweep(self) -> None:
        self._must_sweep, self._swept = False, time.monotonic()
        sweep(self._session, self._nodes, self._takers_changed)

    def _queue_changed(self, listing: _Listing, _: Any) -> None:
        listing.changed = True
        self._news.set()

    def _takers_changed(self, _: Any) -> None:
        self._must_sweep = True
        self._news.set()
