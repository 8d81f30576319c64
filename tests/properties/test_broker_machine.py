"""Whatever is done to them in whatever order, the queues in memory and those in SQL do the same.

The two were written apart, one with heaps and one with indexes, so that what they agree on is what was meant.
"""

from __future__ import annotations

import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from celeriac.brokers.memory import MemoryQueues
from celeriac.sql import messages
from celeriac.sql.messages import Draft, Ending
from celeriac.sql.tables import DEAD, DELAYED, READY, metadata

QUEUES = ["a", "b", "c"]
delays = st.none() | st.integers(-5, 40)


class BrokerMachine(RuleBasedStateMachine):
    """The same steps on both; every answer is compared."""

    tags = Bundle("tags")

    @initialize()
    def start(self) -> None:
        self.memory = MemoryQueues()
        self.engine = sa.create_engine("sqlite://")
        metadata.create_all(self.engine)
        self.connection = self.engine.connect()
        self.now = 1_000_000.0
        self.sent = 0
        self.settled: set[str] = set()

    def teardown(self) -> None:
        if hasattr(self, "connection"):
            self.connection.close()
            self.engine.dispose()

    def due(self, delay: int | None) -> float | None:
        return None if delay is None else self.now + delay

    @rule(delay=st.integers(1, 60))
    def time_goes_by(self, delay: int) -> None:
        self.now += delay

    @rule(queue=st.sampled_from(QUEUES), parts=st.lists(st.tuples(st.integers(0, 9), delays), max_size=4))
    def publish(self, queue: str, parts: list[tuple[int, int | None]]) -> None:
        drafts = []
        for priority, delay in parts:
            self.sent += 1
            drafts.append(Draft(queue, str(self.sent), priority, self.due(delay), f"id-{self.sent}", "task"))
        self.memory.insert(drafts)
        messages.insert(self.connection, drafts)

    @rule(
        target=tags,
        queues=st.lists(st.sampled_from(QUEUES), min_size=1, max_size=4),
        limit=st.integers(0, 5),
        lease=st.integers(1, 50),
    )
    def take(self, queues: list[str], limit: int, lease: int) -> object:
        taken = self.memory.take(queues, limit, lease, self.now)
        assert messages.take(self.connection, queues, limit, lease, self.now) == taken
        assert len(taken) <= limit
        assert len({each.tag for each in taken}) == len(taken)
        assert not self.settled & {each.tag for each in taken}  # a tag never comes again
        return multiple(*(each.tag for each in taken))

    def settle(self, endings: list[Ending]) -> None:
        drafts = {ending.tag: [Draft("a", f"after {ending.tag}")] for ending in endings}
        void = self.memory.settle(endings, drafts)
        assert messages.settle(self.connection, endings) == void
        messages.insert(self.connection, [new for tag in drafts if tag not in void for new in drafts[tag]])
        assert void >= self.settled & {ending.tag for ending in endings}
        self.settled |= {ending.tag for ending in endings}

    @rule(batch=st.lists(consumes(tags), max_size=3))
    def acknowledge(self, batch: list[str]) -> None:
        self.settle([Ending(tag) for tag in batch])

    @rule(tag=tags, delay=delays, counted=st.booleans())
    def requeue(self, tag: str, delay: int | None, counted: bool) -> None:
        self.settle([Ending(tag, READY if delay is None else DELAYED, self.due(delay), counted)])

    @rule(batch=st.lists(tags, max_size=2, unique=True))
    def dead_letter(self, batch: list[str]) -> None:
        self.settle([Ending(tag, DEAD, self.now, reason=f"at {self.now}") for tag in batch])

    @rule(batch=st.lists(tags, max_size=3), lease=st.integers(1, 50))
    def renew(self, batch: list[str], lease: int) -> None:
        void = self.memory.renew(batch, lease, self.now)
        assert messages.renew(self.connection, batch, lease, self.now) == void
        assert void >= self.settled & set(batch)

    @rule(queue=st.sampled_from(QUEUES))
    def purge(self, queue: str) -> None:
        assert messages.purge(self.connection, queue, self.now) == self.memory.purge(queue, self.now)

    @rule(ids=st.lists(st.integers(0, 30), max_size=4, unique=True))
    def replay(self, ids: list[int]) -> None:
        assert messages.replay(self.connection, ids) == self.memory.replay(ids)

    @invariant()
    def both_look_the_same(self) -> None:
        if not hasattr(self, "connection"):
            return
        for queue in QUEUES:
            assert messages.size(self.connection, queue, self.now) == self.memory.size(queue, self.now)
            dead = self.memory.dead_letters(queue, 3)
            assert messages.dead_letters(self.connection, queue, 3) == dead
        assert messages.dead_letters(self.connection, None, 100) == self.memory.dead_letters(None, 100)
        if not messages.has_ready(self.connection, QUEUES, self.now):
            assert not self.memory.has_ready(QUEUES, self.now)
            assert messages.next_due(self.connection) == self.memory.next_due()


TestBrokerMachine = BrokerMachine.TestCase
TestBrokerMachine.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],  # many steps want a tag
)
