"""The queues behind brokers and transports in this process's memory."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from celeriac.sql.messages import Buried, Draft, Ending, Taken, Waiting
from celeriac.sql.tables import DEAD, DELAYED, LEASED, READY
from celeriac.timing import Now, system_now

__all__ = ["MemoryQueues"]


@dataclass(slots=True)
class _Message:
    id: int
    draft: Draft
    state: int = READY
    due: float | None = None
    deliveries: int = 0
    leases: int = 0
    reason: str = ""

    def buried(self) -> Buried:
        """This message as a dead letter."""
        draft = self.draft
        at = self.due or 0.0
        return Buried(
            self.id,
            draft.queue,
            draft.task_id,
            draft.task,
            self.reason,
            self.deliveries,
            at,
            draft.envelope.encode(),
        )

    @property
    def tag(self) -> str:
        return f"{self.id}.{self.leases}"


class MemoryQueues:
    """The queues of one name, shared by all brokers and transports of this process that use it.

    The operations of :mod:`celeriac.sql.messages` with the same meaning, without a connection. Safe from any thread;
    nothing waits. ``now`` is the time by which messages are due.
    """

    _instances: dict[str, MemoryQueues] = {}
    _instances_lock = threading.Lock()

    def __init__(self) -> None:
        self.now: Now = system_now
        self._lock = threading.RLock()
        self._ids = itertools.count(1)
        self._messages: dict[int, _Message] = {}
        self._counts: Counter[str] = Counter()
        # Both kinds of heap keep entries of messages that have changed since; those are passed over.
        self._ready: defaultdict[str, list[tuple[int, int, int]]] = defaultdict(list)
        self._moving: list[tuple[float, int, int]] = []
        self._expiring: list[tuple[float, int]] = []
        self._listeners: dict[object, Callable[[], None]] = {}

    @classmethod
    def named(cls, name: str) -> MemoryQueues:
        """The queues of this name, which live as long as the process."""
        with cls._instances_lock:
            return cls._instances.setdefault(name, MemoryQueues())

    def share(self, name: str) -> None:
        """Be the queues of this name, of which there are none yet."""
        with self._instances_lock:
            self._instances[name] = self

    @classmethod
    def discard(cls, name: str) -> None:
        """Let go of the queues of this name: the next who asks for it gets others."""
        with cls._instances_lock:
            cls._instances.pop(name, None)

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back after every change that can make a message due, on the thread that made it. Returns what ends it.

        The callback must neither block nor raise.
        """
        key = object()
        self._listeners[key] = callback

        def stop() -> None:
            self._listeners.pop(key, None)

        return stop

    def _tell(self) -> None:
        for callback in list(self._listeners.values()):
            callback()

    def insert(self, drafts: Iterable[Draft]) -> None:
        """Insert messages; the order of delivery follows the order of the drafts."""
        with self._lock:
            for draft in drafts:
                message = _Message(next(self._ids), draft, state=DELAYED)
                self._messages[message.id] = message
                if draft.expires is not None:
                    heapq.heappush(self._expiring, (draft.expires, message.id))
                self._place(message, READY if draft.due is None else DELAYED, draft.due)
        self._tell()

    def take(self, queues: Sequence[str], limit: int, lease: float, now: float) -> list[Taken]:
        """Lease up to ``limit`` messages, fairly from all queues, after making READY what is due."""
        taken: list[Taken] = []
        with self._lock:
            self._promote(now)
            in_turn = deque(dict.fromkeys(queues))
            while in_turn and len(taken) < limit:
                queue = in_turn.popleft()
                message = self._first_ready(queue)
                if message is None:
                    continue
                in_turn.append(queue)
                message.leases += 1
                message.deliveries += 1
                self._place(message, LEASED, now + lease)
                taken.append(Taken(message.tag, queue, message.deliveries, message.draft.envelope.encode()))
        return taken

    def settle(
        self, endings: Sequence[Ending], drafts: Mapping[str, Iterable[Draft]] = MappingProxyType({})
    ) -> set[str]:
        """End deliveries, and insert the drafts of the tags that were not void. Returns the tags that were."""
        with self._lock:
            void: set[str] = set()
            for ending in {ending.tag: ending for ending in reversed(endings)}.values():
                message = self._held(ending.tag)
                if message is None:
                    void.add(ending.tag)
                elif ending.state is None:
                    self._remove(message)
                else:
                    self._put_back(message, ending)
            self.insert(draft for tag, new in drafts.items() if tag not in void for draft in new)
        return void

    def renew(self, tags: Sequence[str], lease: float, now: float) -> set[str]:
        """Start the leases of these deliveries anew. Returns the tags that were void."""
        with self._lock:
            held = {tag: self._held(tag) for tag in tags}
            for message in held.values():
                if message is not None:
                    self._place(message, LEASED, now + lease)
        return {tag for tag, message in held.items() if message is None}

    def size(self, queue: str, now: float) -> int:
        """How many messages wait to be delivered now."""
        with self._lock:
            self._promote(now)
            return self._counts[queue]

    def delayed(self, queue: str, limit: int, now: float) -> list[Waiting]:
        """What waits for its time, the earliest first."""
        with self._lock:
            found = [
                Waiting(queue, message.due, message.draft.envelope)
                for message in self._messages.values()
                if message.state == DELAYED and message.draft.queue == queue
                if message.due is not None and message.due > now
            ]
            return sorted(found, key=lambda waiting: waiting.due)[: max(0, limit)]

    def has_ready(self, queues: Sequence[str], now: float) -> bool:
        """Whether a ``take`` would find something."""
        return any(self.size(queue, now) for queue in queues)

    def next_due(self) -> float | None:
        """When the next delay or lease of any queue ends."""
        with self._lock:
            while self._moving:
                due, id_, leases = self._moving[0]
                message = self._messages.get(id_)
                if message is not None and message.leases == leases and message.due == due:
                    return due
                heapq.heappop(self._moving)
        return None

    def purge(self, queue: str, now: float) -> int:
        """Delete the waiting and delayed messages of a queue, not the leased and the dead. Returns how many."""
        with self._lock:
            self._promote(now)
            gone = [
                message
                for message in self._messages.values()
                if message.draft.queue == queue and message.state in (READY, DELAYED)
            ]
            for message in gone:
                self._remove(message)
        return len(gone)

    def drop_expired(self, now: float) -> int:
        """Delete messages that have expired undelivered. Returns how many."""
        with self._lock:
            expired: list[tuple[float, int]] = []
            while self._expiring and self._expiring[0][0] <= now:
                expired.append(heapq.heappop(self._expiring))
            found = [(entry, self._messages[entry[1]]) for entry in expired if entry[1] in self._messages]
            for entry, message in found:
                if message.state in (READY, DELAYED):
                    self._remove(message)
                elif message.state == LEASED:
                    heapq.heappush(self._expiring, entry)  # its consumer may still put it back
        return sum(message.state in (READY, DELAYED) for _, message in found)

    def dead_letters(self, queue: str | None, limit: int) -> list[Buried]:
        """The dead letters of one queue, or of all, newest first."""
        with self._lock:
            dead = [
                message
                for message in self._messages.values()
                if message.state == DEAD and queue in (None, message.draft.queue)
            ]
            dead.sort(key=lambda message: (message.due or 0.0, message.id), reverse=True)
            return [message.buried() for message in dead[:limit]]

    def replay(self, ids: Iterable[int]) -> int:
        """Make dead letters READY again with a fresh delivery count. Returns how many were found."""
        with self._lock:
            found = [message for id_ in ids if (message := self._messages.get(id_)) and message.state == DEAD]
            for message in found:
                message.deliveries = 0
                message.reason = ""
                message.leases += 1
                self._place(message, READY, None)
        self._tell()
        return len(found)

    def _place(self, message: _Message, state: int, due: float | None) -> None:
        queue = message.draft.queue
        self._counts[queue] += (state == READY) - (message.state == READY)
        message.state, message.due = state, due
        if state == READY:
            heapq.heappush(self._ready[queue], (-message.draft.priority, message.id, message.leases))
        elif state != DEAD and due is not None:
            heapq.heappush(self._moving, (due, message.id, message.leases))

    def _remove(self, message: _Message) -> None:
        self._counts[message.draft.queue] -= message.state == READY
        del self._messages[message.id]

    def _put_back(self, message: _Message, ending: Ending) -> None:
        message.leases += 1
        message.deliveries -= not ending.counted
        message.reason = ending.reason or ""
        self._place(message, READY if ending.state is None else ending.state, ending.due)
        self._tell()

    def _held(self, tag: str) -> _Message | None:
        """The message of a tag, unless something else has happened to it since."""
        id_, _, _ = tag.partition(".")
        message = self._messages.get(int(id_)) if id_.isascii() and id_.isdigit() else None
        if message is None or message.tag != tag or message.state not in (LEASED, READY):
            return None
        return message

    def _promote(self, now: float) -> None:
        while (due := self.next_due()) is not None and due <= now:
            _, id_, _ = heapq.heappop(self._moving)
            self._place(self._messages[id_], READY, None)

    def _first_ready(self, queue: str) -> _Message | None:
        heap = self._ready[queue]
        while heap:
            _, id_, leases = heapq.heappop(heap)
            message = self._messages.get(id_)
            if message is not None and message.state == READY and message.leases == leases:
                return message
        return None
