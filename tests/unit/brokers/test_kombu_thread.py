"""The thread that owns a connection: order, deadlines, reconnecting, and calls that never return."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from celeriac.brokers.kombu_sources.base import Outgoing, Source, Taken
from celeriac.brokers.kombu_sources.places import cleansed, place_of
from celeriac.brokers.kombu_thread import SourceThread
from celeriac.errors import BrokerUnavailable, ConfigurationError

URL = "server://user:s%40cret@host:1/path?password=x"


class Server:
    """What a source connects to; it can be away, and calls can hang in it."""

    def __init__(self) -> None:
        self.is_up = True
        self.hangs = threading.Event()
        self.hangs.set()  # set: nothing hangs
        self.opened: list[int] = []
        self.closed: list[int] = []
        self.put: list[Sequence[Outgoing]] = []
        self.given_back: list[Sequence[Taken]] = []

    def check(self) -> None:
        self.hangs.wait()
        if not self.is_up:
            raise ConnectionRefusedError("refused by user:s@cret, s%40cret\nmore")


class FakeSource(Source):
    """A source of a server in this process."""

    def __init__(self, server: Server) -> None:
        super().__init__(URL)
        self.server = server

    def open(self) -> None:
        self.server.check()
        self.server.opened.append(threading.get_ident())

    def close(self) -> None:
        self.server.closed.append(threading.get_ident())

    def put(self, messages: Sequence[Outgoing]) -> None:
        self.server.check()
        self.server.put.append(messages)

    def take(self, queues: Sequence[str], limit: int, wait: float) -> list[Taken]:
        self.server.check()
        self.pause(wait)
        return [Taken(queues[0], b"", 1)]

    def finish(self, taken: Sequence[Taken]) -> None:
        self.server.check()

    def give_back(self, taken: Sequence[Taken]) -> None:
        self.server.given_back.append(taken)

    def size(self, queue: str) -> int:
        self.server.check()
        return len(self.server.put)

    def purge(self, queue: str) -> int:
        raise KeyError("unheard of")


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.hangs.set()


@pytest.fixture
async def thread(server: Server) -> AsyncIterator[SourceThread[FakeSource]]:
    thread = SourceThread(lambda: FakeSource(server), name="source")
    thread.start()
    yield thread
    server.hangs.set()
    await thread.stop()


def size(source: FakeSource) -> int:
    return source.size("q")


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not happened():
            await asyncio.sleep(0.005)


async def test_runs_all_in_one_thread_in_order(server: Server, thread: SourceThread[FakeSource]) -> None:
    seen: list[int] = []

    def note(n: int) -> Callable[[FakeSource], int]:
        return lambda source: seen.append(n) or threading.get_ident()

    threads = set(await asyncio.gather(*(thread.run(note(n), deadline=5) for n in range(20))))

    assert seen == list(range(20))
    assert threads == {server.opened[0]} != {threading.get_ident()}
    await thread.stop()
    await thread.stop()
    assert set(server.closed) == threads
    with pytest.raises(BrokerUnavailable, match="not open"):
        await thread.run(size, deadline=5)
    thread.start()
    assert await thread.run(size, deadline=5) == 0


async def test_says_in_one_sentence_that_the_server_is_away(
    server: Server, thread: SourceThread[FakeSource]
) -> None:
    server.is_up = False

    for _ in range(3):
        with pytest.raises(BrokerUnavailable) as caught:
            await thread.run(size, deadline=5)
        assert (
            str(caught.value)
            == "The broker at server://host:1/path cannot be reached: refused by user:**, **."
        )

    server.is_up = True
    async with asyncio.timeout(5):
        while True:
            try:
                assert await thread.run(size, deadline=5) == 0
            except BrokerUnavailable:
                await asyncio.sleep(0.01)
            else:
                break
    with pytest.raises(BrokerUnavailable, match=r"answered with an error: 'unheard of'\.$"):
        await thread.run(lambda source: source.purge("q"), deadline=5)


async def test_a_connection_that_was_lost_while_idle_is_made_anew(
    server: Server, thread: SourceThread[FakeSource]
) -> None:
    attempts = 0

    def stale_once(source: FakeSource) -> int:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise ConnectionResetError
        return attempts

    await thread.run(size, deadline=5)
    assert await thread.run(stale_once, deadline=5, again=True) == 2
    attempts = 0
    with pytest.raises(BrokerUnavailable, match="ConnectionResetError"):
        await thread.run(stale_once, deadline=5)
    assert len(server.opened) == 2
    assert len(server.closed) == 2


async def test_errors_of_the_caller_pass_and_leave_the_connection(
    server: Server, thread: SourceThread[FakeSource]
) -> None:
    def refuse(error: Exception) -> Callable[[FakeSource], None]:
        def call(source: FakeSource) -> None:
            raise error

        return call

    with pytest.raises(TypeError, match="no JSON"):
        await thread.run(refuse(TypeError("no JSON")), deadline=5)
    with pytest.raises(ConfigurationError):
        await thread.run(refuse(ConfigurationError("wrong")), deadline=5)
    await thread.run(size, deadline=5)
    assert len(server.opened) == 1


async def test_a_call_that_hangs_is_left_behind(server: Server, thread: SourceThread[FakeSource]) -> None:
    await thread.run(size, deadline=5)
    stuck = threading.Event()

    first = asyncio.ensure_future(thread.run(lambda _: stuck.wait(), deadline=0.1))
    behind = asyncio.ensure_future(thread.run(lambda source: 7, deadline=5))
    with pytest.raises(BrokerUnavailable, match=r"does not answer: nothing came back within 0\.1 seconds"):
        await first

    assert await behind == 7
    assert len(server.opened) == 2
    stuck.set()
    await until(lambda: len(server.closed) == 1)


async def test_a_call_that_hangs_is_left_behind_although_nobody_waits_so_long(
    server: Server, thread: SourceThread[FakeSource]
) -> None:
    await thread.run(size, deadline=5)
    held, stuck = server.hangs, threading.Event()
    server.hangs = stuck
    for _ in range(2):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await thread.run(size, deadline=0.15)
    server.hangs = held

    assert await thread.run(size, deadline=5) == 0
    stuck.set()


async def test_what_nobody_waits_for_does_not_begin(server: Server, thread: SourceThread[FakeSource]) -> None:
    await thread.run(size, deadline=5)
    server.hangs.clear()
    first = asyncio.ensure_future(thread.run(size, deadline=5))
    cancelled = asyncio.ensure_future(thread.run(lambda source: source.put([]), deadline=5))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(BrokerUnavailable):
        await thread.run(lambda source: source.put([]), deadline=0.01)
    server.hangs.set()
    await first
    assert await thread.run(size, deadline=5) == 0


async def test_what_was_taken_for_nobody_is_given_back(
    server: Server, thread: SourceThread[FakeSource]
) -> None:
    await thread.run(size, deadline=5)
    server.hangs.clear()
    taking = asyncio.ensure_future(
        thread.run(
            lambda source: source.take(["q"], 1, 0.0),
            deadline=5,
            unwanted=lambda source, taken: source.give_back(taken),
        )
    )
    await asyncio.sleep(0)
    taking.cancel()
    await asyncio.wait([taking])
    server.hangs.set()
    await thread.run(size, deadline=5)
    assert len(server.given_back) <= 1  # it may not have begun at all

    began = threading.Event()

    def take(source: FakeSource) -> list[Taken]:
        began.set()
        return source.take(["q"], 1, 30.0)

    server.given_back.clear()
    taking = asyncio.ensure_future(
        thread.run(take, deadline=5, unwanted=lambda source, taken: source.give_back(taken))
    )
    await until(began.is_set)
    taking.cancel()
    assert await thread.run(size, deadline=5) == 0  # wakes the one that waits
    assert [taken.queue for [taken] in server.given_back] == ["q"]


async def test_who_waits_for_messages_makes_room_for_others(thread: SourceThread[FakeSource]) -> None:
    taking = asyncio.ensure_future(thread.run(lambda source: source.take(["q"], 1, 60.0), deadline=70))
    await asyncio.sleep(0)

    async with asyncio.timeout(5):
        assert await thread.run(size, deadline=5) == 0
        assert len(await taking) == 1
        taking = asyncio.ensure_future(thread.run(lambda source: source.take(["q"], 1, 60.0), deadline=70))
        await asyncio.sleep(0.01)
        thread.wake()
        assert len(await taking) == 1


async def test_stops_although_a_call_hangs(server: Server) -> None:
    thread = SourceThread(lambda: FakeSource(server), name="source")
    thread.start()
    await thread.run(size, deadline=5)
    server.hangs.clear()
    hanging = asyncio.ensure_future(thread.run(size, deadline=30))
    await asyncio.sleep(0)

    async with asyncio.timeout(5):
        await thread.stop(patience=0.05)

    hanging.cancel()
    server.hangs.set()
    await until(lambda: bool(server.closed))


def test_a_loop_that_is_gone_does_not_hurt_the_thread(server: Server) -> None:
    def leave() -> None:
        async def use() -> None:
            thread = SourceThread(lambda: FakeSource(server), name="source")
            thread.start()
            server.hangs.clear()
            waiting = asyncio.ensure_future(thread.run(size, deadline=30))
            await asyncio.sleep(0.01)
            waiting.cancel()

        asyncio.run(use())

    with ThreadPoolExecutor(1) as pool:
        pool.submit(leave).result(timeout=5)
    server.hangs.set()


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("sqla+postgresql://me:pa@host:1/db?sslmode=x", "sqla+postgresql://host:1/db"),
        ("sqla+sqlite:////tmp/a.db", "sqla+sqlite:////tmp/a.db"),
        ("filesystem://", "filesystem://"),
        ("kafka://host;kafka://other", "kafka://host;kafka://other"),
        ("azureservicebus://policy:some/key+=@space", "azureservicebus://space"),
        ("azurestoragequeues://some/key@https://a.b", "azurestoragequeues://https://a.b"),
        ("nothing", "nothing"),
    ],
)
def test_places_have_no_secrets(url: str, place: str) -> None:
    assert place_of(url) == place


def test_secrets_are_masked_wherever_they_are() -> None:
    url = "sqla+mysql://me:p%2Fw@host/db"
    assert cleansed("no p%2Fw and no p/w for me", url) == "no ** and no ** for me"
    assert cleansed("as it is", "filesystem://") == "as it is"
    for url in ("azureservicebus://policy:some/key@space", "azurestoragequeues://some/key@https://a.b"):
        assert cleansed("no some/key", url) == "no **"


def test_a_secret_of_a_letter_does_not_mask_the_words_that_it_is_in() -> None:
    text = 'expected x at "x:x@host", next extra'
    assert cleansed(text, "sqs://x:x@host") == 'expected ** at "**:**@host", next extra'
