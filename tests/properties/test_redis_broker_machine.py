"""Whatever is done to it in whatever order, the broker in Redis has what the broker in memory has.

Only the time stands still: what is delayed is due long ago or in a long time. Redis keeps its own order among messages
that were put back, so what a queue holds is compared as a whole.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule
from tests.services import running_redis

from celeriac.brokers.base import Broker, Publication, Settlement
from celeriac.brokers.memory import MemoryBroker
from celeriac.brokers.redis import RedisBroker
from celeriac.protocol.settlement import Action
from celeriac.testing.contract.messages import name_of, publication

T = TypeVar("T")

QUEUES = ["a", "b c"]
FAR = 10_000.0

priorities = st.sampled_from([0, 3, 6, 9])
dues = st.sampled_from([None, -1.0, FAR])

_numbers = itertools.count()
_urls: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with running_redis() as url:
        _urls.append(url)
        yield
        _urls.clear()


class RedisBrokerMachine(RuleBasedStateMachine):
    """The same steps on both. A tag here is the name of a message and the number of its delivery."""

    tags = Bundle("tags")

    @initialize()
    def start(self) -> None:
        with redis.Redis.from_url(_urls[0]) as client:
            client.flushdb()
        self.runner = asyncio.Runner()
        self.brokers: list[Broker] = [
            MemoryBroker(f"machine-{next(_numbers)}"),
            RedisBroker(_urls[0], lease=FAR),
        ]
        self.each([broker.open() for broker in self.brokers])
        self.now = time.time()
        self.sent = 0
        self.tags_of: dict[str, tuple[str, str]] = {}

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.each([broker.close() for broker in self.brokers])
            self.runner.close()

    def each(self, calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        return [self.runner.run(call) for call in calls]

    def new(self, queue: str, priority: int, delay: float | None) -> Publication:
        self.sent += 1
        due = None if delay is None else self.now + delay
        return publication(str(self.sent), queue, priority=priority, due=due)

    @rule(queue=st.sampled_from(QUEUES), parts=st.lists(st.tuples(priorities, dues), max_size=4))
    def publish(self, queue: str, parts: list[tuple[int, float | None]]) -> None:
        publications = [self.new(queue, *part) for part in parts]
        self.each([broker.publish(publications) for broker in self.brokers])

    @rule(target=tags, queue=st.sampled_from(QUEUES))
    def receive(self, queue: str) -> object:
        mine, theirs = (
            {name_of(delivery): delivery for delivery in received.deliveries}
            for received in self.each([broker.receive([queue], 100) for broker in self.brokers])
        )
        assert {name: (d.queue, d.deliveries) for name, d in mine.items()} == {
            name: (d.queue, d.deliveries) for name, d in theirs.items()
        }
        keys = {f"{name}/{len(self.tags_of)}/{mine[name].tag}": name for name in mine}
        self.tags_of |= {key: (mine[name].tag, theirs[name].tag) for key, name in keys.items()}
        return multiple(*keys)

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """Settle on both; the tags are keys of ``tags_of``."""
        voids = []
        for n, broker in enumerate(self.brokers):
            tags = {self.tags_of[each.tag][n]: each.tag for each in settlements}
            own = [_with_tag(each, self.tags_of[each.tag][n]) for each in settlements]
            voids.append({tags[tag] for tag in self.runner.run(_set(broker.settle(own)))})
        assert voids[0] == voids[1]

    @rule(batch=st.lists(consumes(tags), max_size=4))
    def acknowledge(self, batch: list[str]) -> None:
        self.settle([Settlement(tag, Action.ACKNOWLEDGE) for tag in batch])

    @rule(tag=tags, due=dues, counted=st.booleans(), queue=st.sampled_from(QUEUES), successor=dues)
    def requeue(
        self, tag: str, due: float | None, counted: bool, queue: str, successor: float | None
    ) -> None:
        when = None if due is None else self.now + due
        after = (self.new(queue, 3, successor),)
        self.settle([Settlement(tag, Action.REQUEUE, due=when, counted=counted, publications=after)])

    @rule(tag=tags)
    def dead_letter(self, tag: str) -> None:
        self.settle([Settlement(tag, Action.DEAD_LETTER, reason=f"“{tag}”")])

    @rule(batch=st.lists(tags, max_size=3))
    def renew(self, batch: list[str]) -> None:
        voids = [
            {key for key in batch if self.tags_of[key][n] in void}
            for n, void in enumerate(
                self.runner.run(_set(broker.renew([self.tags_of[key][n] for key in batch])))
                for n, broker in enumerate(self.brokers)
            )
        ]
        assert voids[0] == voids[1]

    @rule(queue=st.sampled_from(QUEUES))
    def purge(self, queue: str) -> None:
        mine, theirs = self.each([broker.purge(queue) for broker in self.brokers])
        assert mine == theirs

    @rule(places=st.lists(st.integers(0, 5), max_size=3, unique=True))
    def replay(self, places: list[int]) -> None:
        counts = []
        for broker in self.brokers:
            letters = self.runner.run(_list(broker.dead_letters()))
            ids = [letters[place].id for place in places if place < len(letters)]
            counts.append(self.runner.run(broker.replay([*ids, "x"])))
        assert counts[0] == counts[1]

    @invariant()
    def both_look_the_same(self) -> None:
        if not hasattr(self, "runner"):
            return
        for queue in QUEUES:
            mine, theirs = self.each([broker.size(queue) for broker in self.brokers])
            assert mine == theirs
            mine_dead, theirs_dead = (
                [(d.task_id, d.reason, d.deliveries, d.queue) for d in letters]
                for letters in self.each([_list(broker.dead_letters(queue, 3)) for broker in self.brokers])
            )
            assert mine_dead == theirs_dead


def _with_tag(settlement: Settlement, tag: str) -> Settlement:
    return Settlement(
        tag,
        settlement.action,
        due=settlement.due,
        counted=settlement.counted,
        reason=settlement.reason,
        publications=settlement.publications,
    )


async def _set(tags: Awaitable[Any]) -> set[str]:
    return set(await tags)


async def _list(letters: Awaitable[Any]) -> list[Any]:
    return list(await letters)


TestRedisBrokerMachine = RedisBrokerMachine.TestCase
TestRedisBrokerMachine.settings = settings(
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],  # many steps want a tag
)
