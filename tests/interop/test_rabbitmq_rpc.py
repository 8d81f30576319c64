"""``result_backend = "rpc://"``: stock clients and our worker, our clients and stock workers, on RabbitMQ."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import aiormq
import pytest
from celery import Celery as StockCelery
from celery import chord
from celery.exceptions import NotRegistered, TaskRevokedError
from pamqp import commands as spec
from tests.interop.redis_site import PATIENCE, Site, StockClient, running_site, unique
from tests.services import RabbitMQServer, RedisServer

from celeriac import Celery
from celeriac.brokers.urls import broker_for
from celeriac.stores.records import Transition

pytestmark = pytest.mark.timeout(90)

WORKERS = ["ours", "solo"]


@pytest.fixture(scope="module")
def site(rabbitmq: RabbitMQServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Workers of both kinds on RabbitMQ; the tasks and the tests talk through Redis."""
    url = rabbitmq.new_vhost()
    settings = {
        "broker_url": url,
        "result_backend": "rpc://",
        "task_default_queue_type": "quorum",
        "task_create_missing_queue_type": "quorum",
        "celeriac_records_url": f"sqlite:///{tmp_path_factory.mktemp('records') / 'celery.db'}",
        "celeriac_unknown_task_grace": 0.2,
        # Ours by default.
        "result_extended": True,
        "task_track_started": True,
    }
    with RedisServer() as server, running_site(server, **settings) as site:
        site.shared(*WORKERS)
        yield site
    rabbitmq.delete_vhost(url)


@pytest.fixture(scope="module")
def client(site: Site) -> StockClient:
    return site.stock_client()


@pytest.fixture(scope="module")
def our_client(site: Site) -> Celery:
    return site.our_client()


# -- a stock client, and our worker ------------------------------------------------------------------------------------


def test_the_client_is_a_stock_one_with_rpc(client: StockClient) -> None:
    assert client("'celeriac' in sys.modules") is False
    assert client("type(app.backend).__module__") == "celery.backends.rpc"


def test_results_come_back(client: StockClient) -> None:
    assert client("add.delay(1, 2).get(timeout=patience)", patience=PATIENCE) == 3
    assert client("[each.get(timeout=9) for each in [add.delay(n, n) for n in range(50)]]") == [
        2 * n for n in range(50)
    ]
    assert client("group(add.s(n, 1) for n in range(5))().get(timeout=9)") == [1, 2, 3, 4, 5]
    assert client("chain(add.s(1, 1), add.s(2), add.s(3))().get(timeout=9)") == 7


def test_failures_come_back_as_what_was_raised(client: StockClient) -> None:
    def failure(queue: str) -> Any:
        expression = (
            "(lambda result: (result.get(timeout=patience, propagate=False), result.state, result.traceback))"
            "(fail.apply_async(('sorry',), queue=queue))"
        )
        return client(expression, queue=queue, patience=PATIENCE)

    ours, stock = failure("ours"), failure("solo")
    assert repr(ours[0]) == repr(stock[0]) == "ValueError('sorry')"
    assert ours[1] == stock[1] == "FAILURE"
    assert ours[2].splitlines()[-1] == stock[2].splitlines()[-1] == "ValueError: sorry"


def test_the_end_of_a_chain_hears_of_what_failed_before_it(client: StockClient) -> None:
    expression = "chain(fail.si('sorry').set(queue=queue), add.si(1, 1).set(queue=queue))().get(timeout=9)"
    for queue in WORKERS:
        with pytest.raises(ValueError, match="sorry"):
            client(expression, queue=queue)


def test_what_does_not_run_is_answered(client: StockClient) -> None:
    with pytest.raises(NotRegistered, match="nowhere"):
        client("app.send_task('nowhere').get(timeout=9)")
    with pytest.raises(TaskRevokedError, match="expired"):
        client("add.apply_async((1, 1), expires=-5).get(timeout=9)")


def test_every_state_is_told(client: StockClient, site: Site) -> None:
    def states(call: str, queue: str) -> list[str]:
        seen: list[str] = client(
            "(lambda seen, result: (result.get(timeout=9, on_message=lambda m: seen.append(m['status'])), seen))"
            f"([], {call})[1]",
            queue=queue,
        )
        return [state for state in seen if state != "STARTED"]

    for queue in WORKERS:
        assert states("retry.apply_async((2,), queue=queue)", queue) == ["RETRY", "RETRY", "SUCCESS"]
    for queue in WORKERS:
        name = unique()
        site.open_gate(name)
        assert states(f"halfway.apply_async(('{name}',), queue=queue)", queue) == ["HALFWAY", "SUCCESS"]


def test_chords_are_refused(client: StockClient, our_client: Celery) -> None:
    with pytest.raises(NotImplementedError, match="does not support chords"):
        client("chord([add.s(1, 1)], total.s())()")
    header = [our_client.signature("add", (1, 1))]
    with pytest.raises(NotImplementedError, match="does not support chords"):
        chord(header, our_client.signature("total"), app=our_client)()


async def test_chords_are_refused_natively(our_client: Celery) -> None:
    body = chord([our_client.signature("add", (1, 1))], our_client.signature("total"), app=our_client)
    async with our_client:
        with pytest.raises(NotImplementedError, match="does not support chords"):
            await our_client.enqueue(body)


# -- the messages ------------------------------------------------------------------------------------------------------


async def answers(url: str, queue: str, task: str, *args: Any, count: int, **options: Any) -> list[Any]:
    """The messages that a worker sends to a reply queue, as they are."""
    stock = StockCelery("plain", broker=url, set_as_current=False)
    stock.conf.task_create_missing_queue_type = "quorum"
    connection = await aiormq.connect(url)
    try:
        channel = await connection.channel()
        declared = await channel.queue_declare(exclusive=True, durable=False)
        found: asyncio.Queue[Any] = asyncio.Queue()
        await channel.basic_consume(str(declared.queue), found.put, no_ack=True)
        options = {"task_id": f"the-{queue}-task", "reply_to": declared.queue, "queue": queue, **options}
        await asyncio.to_thread(stock.send_task, task, args, **options)
        async with asyncio.timeout(PATIENCE):
            return [await found.get() for _ in range(count)]
    finally:
        await connection.close()


def parts(message: Any, hostname: str) -> tuple[Any, ...]:
    properties: spec.Basic.Properties = message.header.properties
    body = json.loads(message.body)
    if body["date_done"] is not None:
        body["date_done"] = len(body["date_done"])
    if body["status"] == "STARTED":
        assert body["result"].pop("pid") > 0
    if body["traceback"]:
        body["traceback"] = body["traceback"].splitlines()[-1]
    text = json.dumps(body).replace(hostname, "worker").replace(hostname.partition("@")[0], "worker")
    properties.correlation_id = str(properties.correlation_id).replace(hostname.partition("@")[0], "worker")
    told = {name: getattr(properties, name) for name in properties.attributes() if name != "message_id"}
    return message.exchange, told, json.loads(text)


@pytest.mark.parametrize(
    ("task", "args", "options", "states"),
    [
        ("add", (1, 2), {}, ["SUCCESS"]),
        ("echo", ({"a": [1, None, "ü"]},), {"correlation_id": "mine"}, ["SUCCESS"]),
        ("fail", ("sorry",), {"group_id": "g", "parent_id": "p"}, ["FAILURE"]),
        ("retry", (1,), {"shadow": "other"}, ["RETRY", "SUCCESS"]),
        ("nested", (1, "elsewhere"), {}, ["SUCCESS"]),
    ],
)
async def test_an_answer_is_what_a_stock_worker_sends(
    site: Site, task: str, args: tuple[Any, ...], options: dict[str, Any], states: list[str]
) -> None:
    found = {}
    for queue in WORKERS:
        messages = await answers(
            site.settings["broker_url"], queue, task, *args, count=2 * len(states), **options
        )
        found[queue] = [parts(each, f"{queue}@site") for each in messages]
    for ours, stock in zip(found["ours"], found["solo"], strict=True):
        assert ours[0] == stock[0] == ""
        assert ours[1] == stock[1]
        mine, theirs = ours[2], stock[2]
        if task == "nested" and mine["status"] == "SUCCESS":
            assert mine.pop("children") == [[[mine.pop("result"), None], None]]
            assert theirs.pop("children") == [[[theirs.pop("result"), None], None]]
        if mine["status"] == "RETRY":
            del theirs["children"], mine["children"]  # Celery makes a task that is retried a child of itself
        assert mine == theirs
    assert [each[2]["status"] for each in found["ours"] if each[2]["status"] != "STARTED"] == states


async def test_nobody_need_be_there_for_the_answer(site: Site, our_client: Celery) -> None:
    """The client has left, and its queue with it: the record says how it ended, and the worker goes on."""
    stock = StockCelery("plain", broker=site.settings["broker_url"], set_as_current=False)
    stock.conf.task_create_missing_queue_type = "quorum"
    async with our_client:
        for number in range(3):
            sent = await asyncio.to_thread(
                stock.send_task, "add", (number, 1), queue="ours", reply_to=f"gone-{unique()}"
            )
            async with asyncio.timeout(PATIENCE):
                while sent.id not in await our_client.store.get([sent.id]):
                    await asyncio.sleep(0.02)
            assert await our_client.handle(sent.id).result(timeout=PATIENCE) == number + 1


async def test_who_died_before_it_had_answered_is_made_up_for(site: Site, our_client: Celery) -> None:
    """The record has ended, and the message was not acknowledged: it comes again, and does not run."""
    url = site.settings["broker_url"]
    broker = broker_for(url)
    async with our_client:
        await broker.open()
        waiting = asyncio.create_task(answers(url, "repeated", "note", "never", "ran", count=1))
        async with asyncio.timeout(PATIENCE):
            while not (received := (await broker.receive(["repeated"], 1)).deliveries):
                await broker.wait(["repeated"], 1)
        task_id = received[0].envelope.headers["id"]  # type: ignore[union-attr]
        end = Transition(task_id=task_id, state="SUCCESS", at=time.time(), result="42", name="note")
        await our_client.store.transition([end])
        await broker.close()
        worker = await asyncio.to_thread(site.worker, "ours", "repeated")
        (answer,) = await waiting
    body = json.loads(answer.body)
    assert (body["task_id"], body["status"], body["result"]) == (task_id, "SUCCESS", 42)
    assert site.notes("never") == []
    await asyncio.to_thread(worker.terminate)


def test_an_ignored_result_is_not_answered(client: StockClient, site: Site) -> None:
    name = unique()
    client("note.apply_async((name, 'ran'), ignore_result=True)", name=name)
    site.notes(name, 1)
    assert client("add.delay(1, 2).get(timeout=9)") == 3


def test_our_app_with_celerys_pool_answers_and_records(
    site: Site, client: StockClient, our_client: Celery
) -> None:
    site.shared("ours-prefork")
    task_id = client("add.apply_async((1, 2), queue='ours-prefork').id")
    assert client("AsyncResult(task_id).get(timeout=patience)", task_id=task_id, patience=PATIENCE) == 3
    with pytest.raises(ValueError, match="sorry"):
        client("fail.apply_async(('sorry',), queue='ours-prefork').get(timeout=9)")

    async def recorded() -> Any:
        async with our_client:
            return await our_client.handle(task_id).result(timeout=PATIENCE)

    assert asyncio.run(recorded()) == 3


# -- our client --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", WORKERS)
def test_our_synchronous_client_gets_results(our_client: Celery, queue: str) -> None:
    add, fail = our_client.tasks["add"], our_client.tasks["fail"]
    assert add.apply_async((1, 2), queue=queue).get(timeout=PATIENCE) == 3
    with pytest.raises(ValueError, match="sorry"):
        fail.apply_async(("sorry",), queue=queue).get(timeout=PATIENCE)
    sent = [add.apply_async((number, 1), queue=queue) for number in range(20)]
    assert [result.get(timeout=PATIENCE) for result in sent] == list(range(1, 21))
    retried = our_client.tasks["retry"].apply_async((1,), queue=queue)
    assert (retried.get(timeout=PATIENCE), retried.state) == (1, "SUCCESS")


def test_another_thread_than_the_one_that_sent_it_finds_the_result_in_the_record(our_client: Celery) -> None:
    """Stock Celery finds nothing: a reply queue is its thread's."""
    found: list[Any] = []

    def send() -> None:
        found.append(our_client.tasks["add"].apply_async((1, 2), queue="ours").id)

    sender = threading.Thread(target=send)
    sender.start()
    sender.join(PATIENCE)
    result = our_client.AsyncResult(found[0])
    assert result.get(timeout=PATIENCE) == 3
    assert our_client.AsyncResult(found[0]).state == "SUCCESS"


async def test_handles_and_cancelling_go_by_the_records(our_client: Celery, site: Site) -> None:
    async with our_client:
        handle = await our_client.tasks["count"].using(queue="ours").enqueue(3)
        assert await handle.result(timeout=PATIENCE) == 3
        assert (await handle.record()).progress.note == "counted"
        name = unique()
        waiting = await our_client.tasks["wait"].using(queue="ours").enqueue(name)
        await asyncio.to_thread(site.notes, name, 1)
        await waiting.cancel()
        with pytest.raises(TaskRevokedError):
            await waiting.result(timeout=PATIENCE)
