"""What SQS and the keeper do together, beyond the broker contract; and what is said when something is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import boto3
import kombu
import pytest
from tests.services import SQSServer

from celeriac.brokers.base import Broker, PartlyPublished, Publication, Settlement
from celeriac.brokers.kombu_held import HeldBroker
from celeriac.brokers.kombu_sources.base import Outgoing, Taken
from celeriac.brokers.kombu_sources.held import Sealed
from celeriac.brokers.kombu_sources.sqs import SQSSource
from celeriac.brokers.sql import SQLBroker
from celeriac.brokers.urls import broker_for
from celeriac.errors import BrokerUnavailable, ConfigurationError
from celeriac.protocol.envelope import decode
from celeriac.protocol.message import Message
from celeriac.protocol.settlement import Action
from celeriac.testing.contract.messages import acknowledged, collect, message, name_of, publication, receive

Connect = Callable[..., Awaitable[Broker]]


class Impatient(SQSSource):
    """SQS, as if it delayed for one second at most and held messages for twenty."""

    longest_hold = 20.0

    def delay_in(self, queue: str) -> float:
        return min(1.0, super().delay_in(queue))


@pytest.fixture
async def connect(sqs: SQSServer, sqs_options: dict[str, Any], database_url: str) -> AsyncIterator[Connect]:
    """Opens a broker: ``connect(lease, source=…, **transport_options)``."""
    opened: list[Broker] = []

    async def connect(lease: float = 30.0, source: type[SQSSource] = SQSSource, **options: Any) -> Broker:
        broker = HeldBroker(
            lambda: source(sqs.url, options={**sqs_options, **options}, lease=lease),
            SQLBroker(database_url),
            lease=lease,
        )
        await broker.open()
        opened.append(broker)
        return broker

    yield connect
    for broker in opened:
        await broker.close()


@pytest.fixture
def client(sqs: SQSServer) -> Any:
    """Amazon's own client."""
    return boto3.client(
        "sqs",
        region_name="us-east-1",
        endpoint_url=sqs.endpoint,
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )


def url_of(client: Any, options: dict[str, Any], queue: str = "contract") -> str:
    url: str = client.get_queue_url(QueueName=options["queue_name_prefix"] + queue)["QueueUrl"]
    return url


# -- delays --------------------------------------------------------------------------------------------------------


async def test_a_delay_beyond_that_of_sqs_waits_in_the_keeper_first(connect: Connect) -> None:
    broker = await connect(source=Impatient)
    due, far = time.time() + 2.5, time.time() + 100
    await broker.publish([publication("1", due=due), publication("far", due=far)])

    waiting = (await broker.delayed("contract"))[-1]
    assert (waiting.due, name_of(waiting)) == (pytest.approx(far), "far")
    assert [name_of(each) for each in await collect(broker, 1)] == ["1"]

    assert time.time() >= due
    assert [name_of(each) for each in await broker.delayed("contract")] == ["far"]


async def test_another_process_sends_what_was_kept(connect: Connect) -> None:
    first = await connect(source=Impatient)
    await first.publish([publication("1", due=time.time() + 2)])
    await first.close()

    assert [name_of(each) for each in await collect(await connect(source=Impatient), 1)] == ["1"]


async def test_purge_forgets_what_was_kept(connect: Connect) -> None:
    broker = await connect()
    await broker.publish([publication("1", due=time.time() + 2000), publication("2")])

    assert await broker.purge("contract") == 2
    assert await broker.delayed("contract") == []


async def test_a_requeue_for_longer_than_a_message_can_be_held_is_a_copy(connect: Connect) -> None:
    broker = await connect(source=Impatient)
    await broker.publish([publication("1")])
    (delivery,) = await receive(broker)

    await broker.settle([Settlement(delivery.tag, Action.REQUEUE, due=time.time() + 60)])

    (waiting,) = await broker.delayed("contract")
    assert name_of(waiting) == "1"
    assert await receive(broker) == []


async def test_what_a_stock_client_sends_with_an_eta_is_put_off(connect: Connect) -> None:
    broker = await connect()
    due = time.time() + 3600
    headers = {"id": "1", "task": "t", "eta": datetime.fromtimestamp(due, UTC).isoformat()}
    await broker.publish([Publication(Message(headers, {}, b""), "contract"), publication("2")])

    assert [name_of(each) for each in await receive(broker)] == ["2"]

    (waiting,) = await broker.delayed("contract")
    assert (waiting.due, name_of(waiting)) == (pytest.approx(due, abs=1), "1")


# -- what SQS has lost ---------------------------------------------------------------------------------------------


async def test_a_message_that_sqs_has_lost_under_its_lease_stays_its_workers(
    connect: Connect, client: Any, sqs_options: dict[str, Any]
) -> None:
    broker = await connect()
    await broker.publish([publication(str(n)) for n in range(3)])
    done, again, dead = await receive(broker)
    # As a server does that comes back empty.
    await asyncio.to_thread(client.delete_queue, QueueUrl=url_of(client, sqs_options))

    assert not await broker.renew([done.tag, again.tag, dead.tag])
    void = await broker.settle(
        [
            *acknowledged([done]),
            Settlement(again.tag, Action.REQUEUE),
            Settlement(dead.tag, Action.DEAD_LETTER, reason="died"),
        ]
    )

    assert not void
    (copy,) = await collect(broker, 1)
    assert (name_of(copy), copy.deliveries) == ("1", 2)
    assert [letter.task_id for letter in await broker.dead_letters()] == ["2"]


async def test_what_sqs_has_lost_is_requeued_although_nobody_had_noticed(
    connect: Connect, client: Any, sqs_options: dict[str, Any]
) -> None:
    broker = await connect()
    await broker.publish([publication("1"), publication("2")])
    counted, uncounted = await receive(broker)
    await asyncio.to_thread(client.delete_queue, QueueUrl=url_of(client, sqs_options))

    void = await broker.settle(
        [Settlement(counted.tag, Action.REQUEUE), Settlement(uncounted.tag, Action.REQUEUE, counted=False)]
    )

    assert not void
    found = {name_of(each): each.deliveries for each in await collect(broker, 2)}
    assert found == {"1": 2, "2": 1}


async def test_a_renewer_of_its_own_thread_knows_what_is_held(connect: Connect) -> None:
    broker = await connect(lease=2.0)
    other = await connect()
    await broker.publish([publication("1")])
    (delivery,) = await receive(broker)
    renewer = broker.renewer()
    assert renewer is not None

    async def keep() -> None:
        await renewer.open()
        for _ in range(4):
            assert not await renewer.renew([delivery.tag])
            await asyncio.sleep(0.8)
        await renewer.close()

    await asyncio.to_thread(asyncio.run, keep())

    assert await receive(other) == []
    assert not await broker.settle(acknowledged([delivery]))


async def test_who_rests_gives_back_what_a_poll_has_brought(connect: Connect) -> None:
    resting, other = await connect(), await connect()
    waiting = asyncio.create_task(resting.wait(["contract"]))
    await asyncio.wait([waiting], timeout=0.2)
    await other.publish([publication("1")])
    await waiting

    await resting.rest()

    assert [name_of(each) for each in await receive(other)] == ["1"]


# -- FIFO, batches, strangers --------------------------------------------------------------------------------------


async def test_a_fifo_queue_keeps_the_order_of_its_groups(connect: Connect) -> None:
    broker = await connect()
    names = [str(n) for n in range(12)]
    for name in names:
        message = publication(name, "orders.fifo").message
        properties = {**message.properties, "MessageGroupId": "one"}
        await broker.publish([Publication(Message(message.headers, properties, message.body), "orders.fifo")])
    (first,) = await receive(broker, 1, ["orders.fifo"])
    await broker.settle([Settlement(first.tag, Action.REQUEUE, counted=False)])

    seen = []
    while deliveries := (await broker.receive(["orders.fifo"], 5)).deliveries:
        seen += [name_of(each) for each in deliveries]
        await broker.settle(acknowledged(deliveries))

    assert seen == names


async def test_a_fifo_queue_delays_by_the_keeper(connect: Connect) -> None:
    broker = await connect()
    due = time.time() + 1
    await broker.publish([publication("1", "orders.fifo", due=due)])
    assert len(await broker.delayed("orders.fifo")) == 1

    assert [name_of(each) for each in await collect(broker, 1, ["orders.fifo"])] == ["1"]
    assert time.time() >= due


def test_the_rest_of_a_batch_is_sent_when_one_is_refused(sqs: SQSServer, sqs_options: dict[str, Any]) -> None:
    source = SQSSource(sqs.url, options={**sqs_options, "sqs_base64_encoding": False})
    bodies = [b"one", b"not a character: \x01", b"two"]

    failed = source.send([Sealed("raw", body) for body in bodies])

    assert [*failed] == [1]
    assert "SQS" in str(source.explained(failed[1]))
    assert {each.envelope for each in source.take(["raw"], 10, 1)} == {b"one", b"two"}
    source.close()


class WithoutQueue(Impatient):
    """SQS, as if it had nothing for one queue."""

    def send(self, messages: Sequence[Sealed]) -> Mapping[int, Exception]:
        good = [n for n, each in enumerate(messages) if each.queue != "refused"]
        failed = super().send([messages[n] for n in good])
        error = BrokerUnavailable("There is no such queue.")
        error.permanent = True
        missing = set(range(len(messages))).difference(good)
        return {good[n]: refusal for n, refusal in failed.items()} | dict.fromkeys(missing, error)


async def test_says_which_of_a_batch_are_published(connect: Connect) -> None:
    broker = await connect(source=WithoutQueue)
    far = time.time() + 100
    batch = [publication("1"), publication("2", "refused"), publication("3"), publication("4", due=far)]
    with pytest.raises(PartlyPublished, match="no such queue") as caught:
        await broker.publish(batch)

    assert (caught.value.published, caught.value.permanent) == ({0, 2, 3}, True)
    assert sorted(name_of(each) for each in await collect(broker, 2)) == ["1", "3"]


async def test_what_was_kept_is_sent_once_when_another_is_refused(
    sqs: SQSServer, sqs_options: dict[str, Any], database_url: str
) -> None:
    refused: list[str] = []

    class Counting(WithoutQueue):
        def send(self, messages: Sequence[Sealed]) -> Mapping[int, Exception]:
            refused.extend(each.queue for each in messages if each.queue == "refused")
            return super().send(messages)

    keeper = SQLBroker(database_url, lease=1.0)
    broker = HeldBroker(lambda: Counting(sqs.url, options=sqs_options), keeper)
    await broker.open()
    due = time.time() + 1.5
    await broker.publish([publication("1", due=due), publication("2", "refused", due=due)])

    deliveries = await collect(broker, 1)
    assert not await broker.settle(acknowledged(deliveries))
    async with asyncio.timeout(10):
        while len(refused) < 2:  # the leases in the keeper have ended
            await asyncio.sleep(0.05)
    assert not await receive(broker)
    await broker.close()


def test_a_queue_that_fails_takes_nothing_from_the_others(
    sqs: SQSServer, sqs_options: dict[str, Any]
) -> None:
    class Unsteady(SQSSource):
        def _receive(self, queue: str, count: int, wait: int) -> list[Taken]:
            if queue == "gone":
                raise BrokerUnavailable("SQS is slow today.")
            return super()._receive(queue, count, wait)

    source = Unsteady(sqs.url, options=sqs_options)
    source.put([Outgoing("there", message("1"))])
    got: list[Taken] = []
    for _ in range(2):  # whichever is first
        with contextlib.suppress(BrokerUnavailable):
            got += source.take(["there", "gone"], 20, 0)
    source.close()
    assert [each.deliveries for each in got] == [1]


async def test_a_hundred_messages_go_by_tens(connect: Connect) -> None:
    broker = await connect()
    names = [str(n) for n in range(100)]
    await asyncio.gather(*(broker.publish([publication(name)]) for name in names))

    deliveries = await collect(broker, 100)

    assert sorted(map(name_of, deliveries), key=int) == names
    assert not await broker.renew([each.tag for each in deliveries])
    assert not await broker.settle(acknowledged(deliveries))
    assert await broker.size("contract") == 0


async def test_kombu_and_we_read_each_others_messages(
    connect: Connect, sqs: SQSServer, sqs_options: dict[str, Any]
) -> None:
    broker = await connect()

    def exchange() -> object:
        with kombu.Connection(sqs.url, transport_options=sqs_options) as connection:
            with connection.SimpleQueue("theirs") as theirs:
                theirs.put({"from": "kombu"})
            with connection.SimpleQueue("ours") as ours:
                message = ours.get(timeout=10)
                message.ack()
                return message.payload, message.headers["id"]

    await broker.publish([publication("1", "ours")])
    payload, task_id = await asyncio.to_thread(exchange)  # type: ignore[misc]

    assert (payload, task_id) == ([[], {}, {}], "1")
    (delivery,) = (await broker.receive(["theirs"], 1)).deliveries
    assert isinstance(delivery.envelope, bytes)
    assert json.loads(decode(delivery.envelope).body) == {"from": "kombu"}


# -- trouble -------------------------------------------------------------------------------------------------------


class Refusing(BaseHTTPRequestHandler):
    """Answers every call as SQS does to whom it does not let in."""

    answer = b""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(400)
        self.send_header("Content-Type", "application/x-amz-json-1.0")
        self.send_header("Content-Length", str(len(self.answer)))
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def refusing() -> Iterator[Callable[[str, str], str]]:
    """Gives the URL of a server that refuses with this code and these words."""
    servers = []

    def serve(code: str, words: str) -> str:
        body = f'{{"__type": "com.amazon.coral.service#{code}", "message": "{words}"}}'.encode()
        server = HTTPServer(("127.0.0.1", 0), type("Handler", (Refusing,), {"answer": body}))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"sqs://AKIA:sec%2Fret@127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


async def said(url: str, database_url: str, **options: Any) -> BrokerUnavailable:
    options = {"region": "us-east-1", "is_secure": False, **options}
    broker = broker_for(url, options=options, kept_in=database_url)
    await broker.open()
    with pytest.raises(BrokerUnavailable) as caught:
        await broker.publish([publication("1")])
    await broker.close()
    assert "sec/ret" not in str(caught.value)
    assert "sec%2F" not in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("code", "words", "cure"),
    [
        ("UnrecognizedClientException", "The security token is invalid.", "check the key and the secret"),
        (
            "InvalidSignatureException",
            "The request signature does not match.",
            "check the key and the secret",
        ),
        ("AccessDeniedException", "not authorized to perform: sqs:getqueueurl", "grant sqs:GetQueueUrl"),
        ("ExpiredTokenException", "The token has expired.", "get new ones"),
    ],
)
async def test_who_is_not_let_in_is_told_what_to_do(
    code: str, words: str, cure: str, refusing: Callable[[str, str], str], database_url: str
) -> None:
    error = await said(refusing(code, words), database_url)
    assert cure in str(error)
    assert error.permanent


async def test_a_server_that_is_not_there_is_named(database_url: str) -> None:
    error = await said("sqs://AKIA:sec%2Fret@127.0.0.1:1", database_url)
    assert "SQS at sqs://127.0.0.1:1 cannot be reached" in str(error)
    assert not error.permanent


async def test_tls_to_a_server_without_it_is_named(sqs: SQSServer, database_url: str) -> None:
    url = f"sqs://AKIA:sec%2Fret@{sqs.host}:{sqs.port}"
    error = await said(url, database_url, is_secure=True)
    assert "set is_secure to False" in str(error)


async def test_what_cannot_be_sent_is_refused_before_anything_is(connect: Connect) -> None:
    broker = await connect(predefined_queues={"contract": {"url": "http://127.0.0.1/0/contract"}})
    with pytest.raises(BrokerUnavailable, match="not among predefined_queues"):
        await broker.publish([publication("1", "another")])
    broker = await connect()
    with pytest.raises(BrokerUnavailable, match="cannot be the name of a queue"):
        await broker.publish([publication("1"), publication("2", "Grüße")])
    large = Publication(Message({"id": "2", "task": "t"}, {}, b"x" * 800_000), "contract")
    with pytest.raises(BrokerUnavailable, match="send a reference instead"):
        await broker.publish([publication("1"), large])
    assert await broker.size("contract") == 0


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
    for name in [name for name in sys.modules if name.startswith("celeriac.brokers.kombu_sources.sqs")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.split(".")[0] in {"boto3", "botocore"}]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.setitem(sys.modules, "botocore", None)
    with pytest.raises(ConfigurationError, match=r'pip install "celeriac\[sqs\]"'):
        broker_for("sqs://", kept_in=database_url)


async def test_what_has_waited_for_the_worker_is_surely_its_own_for_no_longer_than_its_lease(
    connect: Connect,
) -> None:
    broker: Any = await connect(lease=30.0)
    await broker.publish([publication("1")])
    await broker.wait(["contract"], timeout=10)
    (waiting,) = broker._polls._polls["contract"].ready
    waiting.until -= 14.0  # it has waited for so long
    (held,) = await receive(broker, 1)
    assert broker._leases._held[held.tag].until - time.monotonic() >= broker.sure_for
