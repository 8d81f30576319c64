"""The bridge under faults: its keeper, its transport or its process fails between two steps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from celeriac.brokers.base import PartlyPublished, Publication, Settlement
from celeriac.brokers.kombu import KombuBroker
from celeriac.brokers.kombu_keeping import Keeping
from celeriac.brokers.kombu_kept import Kept
from celeriac.brokers.kombu_sources.base import Outgoing, Source, Taken
from celeriac.brokers.kombu_sources.filesystem import FilesystemSource
from celeriac.brokers.kombu_sources.sqla import SQLAlchemySource
from celeriac.brokers.sql import SQLBroker
from celeriac.errors import BrokerUnavailable
from celeriac.protocol.settlement import Action
from celeriac.testing.contract.messages import acknowledged, collect, message, name_of, publication, receive

MakeSource = Callable[[], Source]
LEASE = 4.0


class Keeper(SQLBroker):
    """A keeper whose next publishes fail."""

    failures = 0
    settle_failures = 0
    permanent = False

    async def publish(self, publications: Sequence[Publication]) -> None:
        if self.failures:
            self.failures -= 1
            error = BrokerUnavailable("The disk is full.")
            error.permanent = self.permanent
            raise error
        await super().publish(publications)

    async def settle(self, settlements: Sequence[Settlement]) -> Collection[str]:
        if self.settle_failures:
            self.settle_failures -= 1
            raise BrokerUnavailable("The disk is slow.")
        return await super().settle(settlements)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "transport"


@pytest.fixture(params=["sqla", "filesystem"])
def make_source(request: pytest.FixtureRequest, folder: Path) -> MakeSource:
    folder.mkdir()
    if request.param == "sqla":
        url = f"sqla+sqlite:///{folder}/broker.db"
        return lambda: SQLAlchemySource(url, options={"polling_interval": 0.05}, lease=LEASE)
    options = {"data_folder_in": str(folder), "data_folder_out": str(folder), "polling_interval": 0.05}
    return lambda: FilesystemSource("filesystem://", options=options, lease=LEASE)


@pytest.fixture
def keeper(database_url: str) -> Keeper:
    return Keeper(database_url, lease=LEASE)


@pytest.fixture
async def broker(make_source: MakeSource, keeper: Keeper) -> AsyncIterator[KombuBroker]:
    broker = KombuBroker(make_source, keeper)
    await broker.open()
    yield broker
    await broker.close()


async def test_a_keeper_that_fails_for_a_moment_loses_nothing(broker: KombuBroker, keeper: Keeper) -> None:
    await broker.publish([publication("1"), publication("2")])
    keeper.failures = 2

    assert [name_of(each) for each in await receive(broker)] == ["1", "2"]


async def test_a_keeper_that_is_gone_leaves_everything_in_the_transport(
    broker: KombuBroker, keeper: Keeper
) -> None:
    await broker.publish([publication("1"), publication("2")])
    keeper.failures, keeper.permanent = 1, True

    with pytest.raises(BrokerUnavailable, match="disk is full"):
        await receive(broker)

    assert await broker.size("contract") == 2
    assert [name_of(each) for each in await receive(broker)] == ["1", "2"]


async def test_what_was_taken_by_a_process_that_died_comes_back(
    broker: KombuBroker, make_source: MakeSource
) -> None:
    await broker.publish([publication("1"), publication("2")])

    def take_and_die() -> None:
        dead = make_source()
        dead.open()
        assert len(dead.take(["contract"], 1, 0.0)) == 1

    await asyncio.to_thread(take_and_die)
    (other,) = await receive(broker)
    assert not await broker.settle(acknowledged([other]))
    assert name_of(other) == "2"
    assert [name_of(each) for each in await collect(broker, 1)] == ["1"]


async def test_what_was_given_back_comes_again_and_what_is_finished_never(
    broker: KombuBroker, make_source: MakeSource
) -> None:
    await broker.publish([publication("1")])
    source = make_source()

    def take() -> None:
        source.open()
        source.give_back(source.take(["contract"], 1, 0.0))
        source.finish(source.take(["contract"], 1, 0.0))
        source.close()

    await asyncio.to_thread(take)
    assert await broker.size("contract") == 0


async def test_a_backlog_of_delayed_messages_starves_nobody(broker: KombuBroker) -> None:
    soon = time.time() + 0.3
    await broker.publish([publication(f"later-{n}", due=soon) for n in range(1000)])
    await asyncio.sleep(0.4)  # all of them are due at once
    await broker.publish([publication(f"now-{n}", "urgent") for n in range(20)])

    started = time.monotonic()
    got = await collect(broker, 20, ["urgent", "contract"])
    got += await collect(broker, 30, ["urgent", "contract"])
    assert sum(name_of(each).startswith("now") for each in got) >= 15
    assert time.monotonic() - started < 10


def take_away(folder: Path) -> None:
    folder.rename(folder.with_name("away"))
    folder.write_text("no folder")


def bring_back(folder: Path) -> None:
    folder.unlink()
    folder.with_name("away").rename(folder)


async def test_a_transport_that_was_away_is_consumed_again(broker: KombuBroker, folder: Path) -> None:
    if "sqla" in broker.place:
        pytest.skip("A SQLite file that is open cannot be taken away; PostgreSQL is, elsewhere.")
    await broker.publish([publication("1")])
    assert not await broker.settle(acknowledged(await receive(broker)))
    waiting = asyncio.ensure_future(broker.wait(["contract"]))
    await asyncio.sleep(0.1)

    take_away(folder)
    with pytest.raises(BrokerUnavailable, match="data_folder"):
        await broker.publish([publication("2")])
    with pytest.raises(BrokerUnavailable, match="data_folder"):
        await receive(broker)
    bring_back(folder)

    async with asyncio.timeout(5):
        while True:
            try:
                await broker.publish([publication("3")])
                (delivery,) = await collect(broker, 1)
            except BrokerUnavailable:
                await asyncio.sleep(0.05)
            else:
                break
    assert name_of(delivery) == "3"
    waiting.cancel()


async def test_delayed_messages_that_cannot_be_moved_are_told_of_once(
    broker: KombuBroker, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if "sqla" in broker.place:
        pytest.skip("A SQLite file that is open cannot be taken away; PostgreSQL is, elsewhere.")
    await broker.publish([publication("1", due=time.time() + 0.2)])
    take_away(folder)
    async with asyncio.timeout(10):
        while not any("Delayed messages wait" in each for each in caplog.messages):
            await asyncio.sleep(0.05)
        await asyncio.sleep(2.3)  # it is tried again each second
    bring_back(folder)

    assert [name_of(each) for each in await collect(broker, 1)] == ["1"]
    told = [each for each in caplog.messages if "Delayed messages wait" in each]
    assert len(told) == 1
    assert "data_folder" in told[0]


async def test_who_rests_gives_back_what_it_has_not_started(
    broker: KombuBroker, keeper: Keeper, make_source: MakeSource
) -> None:
    waiting = asyncio.ensure_future(broker.wait(["contract"]))
    await asyncio.sleep(0.05)
    await broker.publish([publication("1")])
    await waiting

    await broker.rest()

    def left() -> int:
        source = make_source()
        source.open()
        size = source.size("contract")
        source.close()
        return size

    assert await asyncio.to_thread(left) == 1
    assert [name_of(each) for each in await receive(broker)] == ["1"]


async def test_who_rests_gives_back_more_than_goes_at_once(broker: KombuBroker, keeper: Keeper) -> None:
    assert not await receive(broker, 150)
    waiting = asyncio.ensure_future(broker.wait(["contract"]))
    await asyncio.sleep(0.05)
    await broker.publish([publication(str(n)) for n in range(150)])
    await waiting

    await broker.rest()

    kept = f"{broker.place}#contract"
    assert await keeper.size(kept) == 0
    assert await broker.size("contract") == 150


async def test_whoever_waits_is_told_what_nobody_expected(keeper: Keeper, tmp_path: Path) -> None:
    calls: list[float] = []

    class Faulty(FilesystemSource):
        def take(self, queues: Sequence[str], limit: int, wait: float) -> list[Taken]:
            if wait:
                calls.append(wait)
                raise TypeError("wait for nothing")
            return super().take(queues, limit, wait)

    folder = str(tmp_path / "faulty")
    options = {"data_folder_in": folder, "data_folder_out": folder}
    broker = KombuBroker(lambda: Faulty("filesystem://", options=options), keeper)
    await broker.open()
    with pytest.raises(TypeError, match="wait for nothing"):
        await broker.wait(["contract"], 5)
    await broker.close()
    assert len(calls) == 1


async def test_what_comes_of_a_delivery_is_published_once_however_often_it_is_settled(
    broker: KombuBroker, keeper: Keeper
) -> None:
    await broker.publish([publication("1")])
    (delivery,) = await receive(broker)
    ending = Settlement(delivery.tag, Action.ACKNOWLEDGE, publications=(publication("2"), publication("3")))
    keeper.settle_failures = 1

    with pytest.raises(BrokerUnavailable, match="disk is slow"):
        await broker.settle([ending])
    assert not await broker.settle([ending])

    assert [name_of(each) for each in await receive(broker)] == ["2", "3"]


async def test_what_comes_before_its_eta_waits_in_the_keeper(
    broker: KombuBroker, make_source: MakeSource, database_url: str
) -> None:
    eta = time.time() + 0.7
    await asyncio.to_thread(put_with_eta, make_source, datetime.fromtimestamp(eta, UTC).isoformat())

    assert not await receive(broker)
    assert [each.due for each in await broker.delayed("contract")] == [pytest.approx(eta, abs=0.01)]
    assert await broker.size("contract") == 0

    # The process that took it may die: it is in the keeper, under nobody's lease.
    other = KombuBroker(make_source, SQLBroker(database_url, lease=LEASE))
    await other.open()
    (delivery,) = await collect(other, 1)
    assert time.time() >= eta
    assert (name_of(delivery), delivery.deliveries) == ("1", 1)
    await other.close()


async def test_what_has_an_eta_that_is_no_time_is_delivered(
    broker: KombuBroker, make_source: MakeSource
) -> None:
    await asyncio.to_thread(put_with_eta, make_source, "soon")
    assert [name_of(each) for each in await receive(broker)] == ["1"]


def put_with_eta(make_source: MakeSource, eta: str) -> None:
    """Put a message as stock clients do, which leave waiting to the worker."""
    delayed = message("1")
    delayed.headers["eta"] = eta
    source = make_source()
    source.open()
    source.put([Outgoing("contract", delayed)])
    source.close()


async def test_what_the_transport_refuses_holds_up_no_other_delayed_message(
    broker: KombuBroker, keeper: Keeper
) -> None:
    if "filesystem" not in broker.place:
        pytest.skip("SQL takes whatever has a queue.")
    soon = time.time() + 0.2
    await broker.publish([publication("1", "no/file", due=soon), publication("2", due=soon)])

    async with asyncio.timeout(LEASE / 2):
        assert [name_of(each) for each in await collect(broker, 1)] == ["2"]
        while not (letters := await broker.dead_letters("no/file")):
            await asyncio.sleep(0.02)
    assert [(each.task_id, each.queue) for each in letters] == [("1", "no/file")]
    assert "file's name" in letters[0].reason
    assert [each.id for each in await broker.dead_letters()] == [letters[0].id]


async def test_a_replay_that_went_in_part_is_not_told_as_one_that_did_not(keeper: Keeper) -> None:
    """Who puts the records back on hearing that would put back one whose task runs."""
    sent: list[Kept] = []

    async def send(batch: Sequence[Kept]) -> None:
        if sent:
            raise BrokerUnavailable("The queue is gone.")
        sent.extend(batch)

    keeping = Keeping(keeper, "place", send)
    await keeping.bury([Kept("q", message(name).body, at=time.time(), task_id=name) for name in "12"])
    ids = [letter.id for letter in await keeping.dead_letters(None, 10)]
    assert len(ids) == 2

    with pytest.raises(BrokerUnavailable, match="queue is gone") as caught:
        await keeping.replay(ids)
    assert caught.value.unconfirmed
    (left,) = await keeping.dead_letters(None, 10)
    assert {left.task_id, sent[0].task_id} == {"1", "2"}

    with pytest.raises(BrokerUnavailable, match="queue is gone") as caught:
        await keeping.replay([left.id])
    assert not caught.value.unconfirmed
    await keeping.close()


async def test_says_which_of_a_batch_are_published(broker: KombuBroker) -> None:
    if "filesystem" not in broker.place:
        pytest.skip("SQL takes whatever has a queue.")
    far = time.time() + 100
    with pytest.raises(PartlyPublished, match="file's name") as caught:
        await broker.publish([publication("1", "no/file"), publication("2", due=far), publication("3")])

    # The files are written together, or none of them; what is delayed is in the keeper by then.
    assert (caught.value.published, type(caught.value.error)) == ({1}, TypeError)
    assert [name_of(each) for each in await broker.delayed("contract")] == ["2"]


async def test_queues_and_dead_letters_of_others_are_not_seen(
    broker: KombuBroker, keeper: Keeper, database_url: str
) -> None:
    other = SQLBroker(database_url)
    await other.open()
    await other.publish([publication("other", "contract", due=time.time() + 100)])
    await broker.publish([publication("mine", due=time.time() + 100)])

    assert [name_of(each) for each in await broker.delayed("contract")] == ["mine"]
    assert await broker.purge("contract") == 1
    assert len(await other.delayed("contract")) == 1
    await other.close()
