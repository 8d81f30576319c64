"""Exchanges between stock clients and consumers, and ours: messages arrive where a stock publisher's would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

import celery
import pytest
from celery.utils.nodenames import worker_direct
from kombu import Connection, Exchange, Queue
from kombu.common import Broadcast

from celeriac import Celery
from celeriac.worker.embedded import run_embedded


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    fixture = {"sqlite": "database_url", "redis": "redis_url"}[request.param]
    return str(request.getfixturevalue(fixture))


@pytest.fixture
def marked() -> str:
    """Makes names that no other test uses on the server."""
    return uuid4().hex[:8]


@pytest.fixture
def stock(url: str) -> Iterator[celery.Celery]:
    """A client that knows nothing of the worker's queues."""
    app = celery.Celery("stock", broker=url, set_as_current=False)
    yield app
    app.close()


@pytest.fixture
def consume(url: str) -> Iterator[Callable[[Queue], Callable[[], list[str]]]]:
    """Consumes from a queue by kombu; returns what takes the ids of the tasks that came."""
    connections: list[Connection] = []

    def consume(queue: Queue) -> Callable[[], list[str]]:
        connection = Connection(url)
        connections.append(connection)
        found: list[str] = []

        def on_message(message: Any) -> None:
            found.append(message.headers["id"])
            message.ack()

        consumer = connection.Consumer(queue, on_message=on_message)
        consumer.consume()
        # What a subscription is answered with is an event, too.
        with suppress(TimeoutError):
            while not found:
                connection.drain_events(timeout=0.2)

        def take() -> list[str]:
            with suppress(TimeoutError):
                while not found:
                    connection.drain_events(timeout=5)
            taken, found[:] = list(found), []
            return taken

        return take

    yield consume
    for connection in connections:
        connection.close()


@asynccontextmanager
async def working(url: str, mark: str, **conf: Any) -> AsyncIterator[tuple[Celery, asyncio.Queue[Any]]]:
    """An app of ours with a worker on two queues, and what its task was called with."""
    app = Celery("ours", broker=url, backend=url, set_as_current=False)
    app.conf.update(
        task_queues=[
            Queue(f"videos-{mark}", Exchange(f"media-{mark}", "topic"), "media.video.#"),
            Queue(f"keyed-{mark}", Exchange(f"direct-{mark}"), "the-key"),
        ],
        task_default_queue=f"keyed-{mark}",
        **conf,
    )
    seen: asyncio.Queue[Any] = asyncio.Queue()

    @app.task(name="see")
    async def see(value: Any) -> Any:
        await seen.put(value)
        return value

    async with app, run_embedded(app, concurrency=2):
        yield app, seen


async def test_stock_clients_reach_the_queues_of_our_worker(
    url: str, marked: str, stock: celery.Celery
) -> None:
    stock.conf.task_default_queue = f"of-no-importance-{marked}"
    async with working(url, marked) as (app, seen):
        async with asyncio.timeout(20):
            # What binds the queues is the first look for messages.
            while not await app.broker.bindings(f"direct-{marked}"):
                await asyncio.sleep(0.01)

            def publish() -> None:
                stock.send_task("see", ("direct",), exchange=f"direct-{marked}", routing_key="the-key")
                media = Queue(f"videos-{marked}", Exchange(f"media-{marked}", "topic"), "media.video.#")
                stock.send_task("see", ("topic",), queue=media, routing_key="media.video.x")

            await asyncio.to_thread(publish)
            assert {await seen.get(), await seen.get()} == {"direct", "topic"}


async def test_ours_reach_the_queues_that_a_stock_consumer_has_bound(
    url: str, marked: str, consume: Callable[[Queue], Callable[[], list[str]]]
) -> None:
    exchange = Exchange(f"media-{marked}", "topic")
    everything = await asyncio.to_thread(consume, Queue(f"all-{marked}", exchange, "media.#"))
    async with working(url, marked) as (app, seen):
        async with asyncio.timeout(20):
            handle = await app.enqueue(
                "see", ("both",), queue=f"videos-{marked}", routing_key="media.video.long"
            )
            assert await seen.get() == "both"
            assert await asyncio.to_thread(everything) == [handle.id]
            by_key = await app.enqueue(
                "see", ("only there",), exchange=f"media-{marked}", routing_key="media.image"
            )
            assert await asyncio.to_thread(everything) == [by_key.id]
            assert seen.empty()


async def test_everybody_who_listens_to_a_fanout_exchange_hears_ours(
    url: str, marked: str, consume: Callable[[Queue], Callable[[], list[str]]]
) -> None:
    fan = Exchange(f"fan-{marked}", "fanout")
    listeners = [
        await asyncio.to_thread(consume, Queue(f"fan-{marked}-{number}", fan, "news", auto_delete=True))
        for number in range(2)
    ]
    app = Celery("ours", broker=url, backend=url, set_as_current=False)
    app.conf.task_queues = [Queue(f"fan-{marked}-0", fan, "news")]
    async with app:
        handle = await app.enqueue("see", (1,), queue=f"fan-{marked}-0")
        for take in listeners:
            assert await asyncio.to_thread(take) == [handle.id]


async def test_a_worker_has_a_queue_of_its_own(url: str, marked: str, stock: celery.Celery) -> None:
    async with working(url, marked, worker_direct=True) as (app, seen):
        direct = next(name for name in app.amqp.queues.consume_from if name.endswith(".dq2"))
        hostname = direct.removesuffix(".dq2")
        async with asyncio.timeout(20):
            handle = await app.enqueue("see", ("ours",), queue=worker_direct(hostname))
            assert await seen.get() == "ours"
            assert (await handle.record()).queue == direct
            await asyncio.to_thread(stock.send_task, "see", ("stock",), queue=worker_direct(hostname))
            assert await seen.get() == "stock"


async def test_every_worker_gets_what_is_broadcast(url: str, marked: str, stock: celery.Celery) -> None:
    name = f"all-{marked}"
    stock.conf.task_queues = [Broadcast(name)]
    heard: asyncio.Queue[tuple[int, str]] = asyncio.Queue()

    def worker(number: int) -> Celery:
        app = Celery("ours", broker=url, backend=url, set_as_current=False)
        app.conf.task_queues = [Broadcast(name)]

        @app.task(name="hear")
        async def hear(value: str) -> None:
            await heard.put((number, value))

        return app

    first, second = worker(1), worker(2)
    async with first, run_embedded(first, concurrency=1), second, run_embedded(second, concurrency=1):
        async with asyncio.timeout(20):
            # A worker listens before it looks into its own queue.
            for app in (first, second):
                [queue] = app.amqp.queues.consume_from
                await app.enqueue("hear", ("own",), queue=Queue(queue))
            assert {await heard.get(), await heard.get()} == {(1, "own"), (2, "own")}
            await first.enqueue("hear", ("ours",), queue=name)
            await asyncio.to_thread(stock.send_task, "hear", ("stock",), queue=name)
            seen = {await heard.get() for _ in range(4)}
    assert seen == {(number, value) for number in (1, 2) for value in ("ours", "stock")}


async def test_a_retry_takes_the_way_that_its_message_came(url: str, marked: str) -> None:
    name = f"all-{marked}"
    async with working(url, marked) as (app, seen):
        app.amqp.queues.select_add(Broadcast(name))

        @app.task(bind=True, name="again")
        async def again(self: Any) -> None:
            info = self.request.delivery_info
            await seen.put((self.request.retries, info["exchange"], info["routing_key"]))
            if not self.request.retries:
                raise self.retry(countdown=0)

        async with asyncio.timeout(20):
            for queue in app.amqp.queues.consume_from:
                handle = await app.enqueue("again", queue=queue)
                first, second = await seen.get(), await seen.get()
                assert (first[0], second[0]) == (0, 1)
                assert first[1:] == second[1:]
                assert await handle.result(10) is None
