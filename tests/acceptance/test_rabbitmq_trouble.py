"""RabbitMQ refuses, or is not what the URL says: one sentence with the cause and the cure, and no waiting for ever."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from tests.acceptance.ledger import Ledger
from tests.acceptance.processes import Launcher
from tests.services import Certificates, RabbitMQServer

from celeriac import Celery
from celeriac.brokers.base import Broker, Publication
from celeriac.brokers.urls import broker_for, load_driver
from celeriac.errors import BrokerUnavailable, PublishTimeout
from celeriac.protocol.exchanges import QueueFlags
from celeriac.testing.contract.messages import acknowledged, collect, name_of, publication, receive

load_driver("amqp://")


async def complaint(url: str, **options: object) -> BrokerUnavailable:
    """What publishing says."""
    broker = broker_for(url, options=options)
    await broker.open()
    try:
        with pytest.raises(BrokerUnavailable) as caught:
            await broker.publish([publication("1")])
        return caught.value
    finally:
        await broker.close()


async def test_a_wrong_password(rabbitmq: RabbitMQServer) -> None:
    error = await complaint(rabbitmq.url_for("/", "guest", "wrong"))
    assert error.permanent
    assert "refused the login: check user and password" in str(error)
    assert "wrong" not in str(error)


async def test_a_virtual_host_that_is_not_there(rabbitmq: RabbitMQServer) -> None:
    error = await complaint(rabbitmq.url_for("nowhere"))
    assert error.permanent
    assert "create the virtual host" in str(error)


async def test_nobody_listens() -> None:
    error = await complaint("amqp://guest:secret@127.0.0.1:1//")
    assert not error.permanent
    assert "RabbitMQ at amqp://127.0.0.1:1 cannot be reached" in str(error)
    assert str(error).endswith(": check host and port in the broker's URL, and whether the server runs.")
    assert "secret" not in str(error)


async def test_no_sentence_of_the_drivers_stands_beside_ours(caplog: pytest.LogCaptureFixture) -> None:
    await complaint("amqp://guest:secret@127.0.0.1:1//")
    assert not caplog.records


async def test_something_else_listens() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        error = await complaint(f"amqp://127.0.0.1:{port}//")
    assert error.permanent
    assert "does not speak AMQP 0-9-1: check the port" in str(error)


async def test_certificates_that_are_not_there_are_named(rabbitmq: RabbitMQServer) -> None:
    error = await complaint(rabbitmq.url, ssl={"ca_certs": "/nowhere/ca.pem"})
    assert error.permanent
    assert "(ca_certs '/nowhere/ca.pem')" in str(error)


async def test_a_queue_that_others_are_to_declare(rabbitmq_url: str) -> None:
    broker = broker_for(rabbitmq_url, queue_flags=lambda _: QueueFlags(declared=False))
    await broker.open()
    with pytest.raises(BrokerUnavailable, match="no such queue: make it there, or leave out no_declare"):
        await broker.publish([publication("1")])
    await broker.close()


@pytest.mark.timeout(120)
async def test_a_worker_tells_of_an_outage_once_and_of_its_end(
    rabbitmq_server: RabbitMQServer, tmp_path: Path
) -> None:
    launcher = Launcher()
    conf = {"result_backend": f"sqlite:///{tmp_path / 'celery.db'}"}
    ledger = Ledger(tmp_path / "ledger", launcher, url=rabbitmq_server.url, conf=conf)
    try:
        worker = await asyncio.to_thread(ledger.start_worker)
        async with ledger.client as client:
            await (await client.enqueue("ledger.work", (0.0,))).result(timeout=30)
        await asyncio.to_thread(rabbitmq_server.kill)
        await asyncio.to_thread(
            worker.wait_for_line, r"Cannot receive, trying again until it works: RabbitMQ at "
        )
        await asyncio.to_thread(rabbitmq_server.start)
        end = r"WARNING.*Receives again, after \d+ seconds\."
        await asyncio.to_thread(worker.wait_for_line, end, timeout=60)
        said = [line for line in worker.output.splitlines() if "Cannot receive" in line]
    finally:
        launcher.clean_up()
    assert len(said) == len({line.partition("Cannot receive")[2] for line in said})


@pytest.mark.timeout(90)
def test_a_worker_with_a_wrong_password_ends_without_a_traceback(
    rabbitmq: RabbitMQServer, tmp_path: Path
) -> None:
    launcher = Launcher()
    url = rabbitmq.url_for("/", "guest", "wrong")
    conf = {"result_backend": f"sqlite:///{tmp_path / 'celery.db'}"}
    try:
        worker = Ledger(tmp_path / "ledger", launcher, url=url, conf=conf).run_worker()
        assert worker.wait(60) == 1
        said = worker.output
    finally:
        launcher.clean_up()
    assert "The worker stops: RabbitMQ at " in said
    assert "Traceback" not in said


async def test_tls_where_there_is_none(rabbitmq: RabbitMQServer) -> None:
    error = await complaint(rabbitmq.url.replace("amqp://", "amqps://"))
    assert error.permanent
    assert "check that the port speaks TLS" in str(error)


async def test_tls(certificates: Certificates) -> None:
    with RabbitMQServer(certificates=certificates) as server:
        error = await complaint(server.url)
        assert error.permanent
        assert "broker_use_ssl names the authority" in str(error)
        broker = broker_for(server.url, options={"ssl": {"ca_certs": str(certificates.authority)}})
        await broker.open()
        await broker.publish([publication("1")])
        assert [name_of(each) for each in await receive(broker)] == ["1"]
        await broker.close()


async def test_a_queue_that_was_declared_otherwise(rabbitmq_url: str) -> None:
    def queue_of(kind: str) -> Broker:
        arguments = {} if kind == "classic" else {"x-queue-type": kind}
        return broker_for(rabbitmq_url, queue_arguments=lambda _: arguments)

    for first, second, cure in (
        ("classic", "quorum", 'task_default_queue_type = "classic"'),
        ("quorum", "classic", "task_queues"),
    ):
        one, other = queue_of(first), queue_of(second)
        await one.open()
        await other.open()
        await one.publish([publication("1", first)])
        with pytest.raises(BrokerUnavailable) as caught:
            await other.publish([publication("1", first)])
        assert caught.value.permanent
        assert cure in str(caught.value)
        assert f"'{first}'" in str(caught.value)
        await one.close()
        await other.close()


async def test_a_server_without_memory_blocks_publishing_alone(rabbitmq_server: RabbitMQServer) -> None:
    app = Celery("client", broker=rabbitmq_server.url, backend="memory://", set_as_current=False)
    app.conf.celeriac_publish_deadline = 1.0
    worker = broker_for(rabbitmq_server.url)
    await worker.open()
    async with app:
        await app.enqueue("some.task")
        with rabbitmq_server.out_of_memory():
            before = time.monotonic()
            with pytest.raises(PublishTimeout):
                await app.enqueue("some.task")
            assert time.monotonic() - before < 2
            # From then on nothing is sent that would only wait in this process, and be enqueued much later.
            for _ in range(2):
                with pytest.raises(PublishTimeout):
                    await app.enqueue("never.sent")
            # What is there can be worked on.
            deliveries = await collect(worker, 1, ["celery"])
            assert len(deliveries) == 1
        while True:
            try:
                last = await app.enqueue("some.task")
                break
            except PublishTimeout:
                await asyncio.sleep(0.1)
        sent = []
        while not sent or sent[-1]["id"] != last.id:
            sent += [each.envelope.headers for each in await collect(worker, 1, ["celery"])]  # type: ignore[union-attr]
        assert {each["task"] for each in sent} == {"some.task"}
    await worker.close()


async def test_what_a_dead_connection_held_comes_again_and_is_counted(rabbitmq_url: str) -> None:
    for arguments in ({"x-queue-type": "quorum"}, {}):
        first, second = (broker_for(rabbitmq_url, queue_arguments=lambda _, a=arguments: a) for _ in range(2))
        queue = f"crash-{len(arguments)}"
        await first.open()
        await second.open()
        await first.publish([publication("1", queue)])
        for count in range(1, 4):
            await first.close()
            await first.open()
            lost: list[str] = []
            first.on_lost(lost.extend)
            (delivery,) = await collect(first, 1, [queue])
            assert delivery.deliveries == count
        await first._in.drop()  # type: ignore[attr-defined]
        assert lost == [delivery.tag]
        (again,) = await collect(second, 1, [queue])
        assert again.deliveries == 4
        await first.close()
        await second.close()


async def test_a_queue_that_was_deleted_is_made_again(rabbitmq: RabbitMQServer, rabbitmq_url: str) -> None:
    broker = broker_for(rabbitmq_url)
    await broker.open()
    await broker.publish([publication("1")])
    assert len(await receive(broker)) == 1
    vhost = rabbitmq_url.rpartition("/")[2]
    await asyncio.to_thread(rabbitmq.api, "DELETE", f"queues/{vhost}/contract")
    async with asyncio.timeout(10):  # RabbitMQ says so
        while broker._consuming.has_consumer("contract"):  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)
    await broker.publish([publication("2")])
    assert [name_of(each) for each in await collect(broker, 1)] == ["2"]
    await broker.close()


async def test_long_delays_survive_the_server(rabbitmq_server: RabbitMQServer) -> None:
    broker = broker_for(rabbitmq_server.url)
    await broker.open()
    due = time.time() + 12
    await broker.publish([Publication(publication("1").message, "contract", due=due)])
    await asyncio.to_thread(rabbitmq_server.kill)
    await asyncio.to_thread(rabbitmq_server.start)
    async with asyncio.timeout(40):
        while True:
            try:
                (delivery,) = await collect(broker, 1)
                break
            except BrokerUnavailable:
                await asyncio.sleep(0.1)
    assert time.time() >= due
    assert name_of(delivery) == "1"
    await broker.close()


@pytest.mark.timeout(120)
async def test_what_was_held_too_long_is_lost_and_the_log_says_what_to_set(
    rabbitmq_server: RabbitMQServer, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    for name, milliseconds in (("consumer_timeout", 1000), ("channel_tick_interval", 200)):
        change = f"application:set_env(rabbit, {name}, {milliseconds})."
        await asyncio.to_thread(rabbitmq_server.command, "eval", change)
    broker = broker_for(rabbitmq_server.url)
    await broker.open()
    lost: list[str] = []
    broker.on_lost(lost.extend)
    await broker.publish([publication("1")])
    (held,) = await receive(broker)
    async with asyncio.timeout(20):
        while not lost:
            await asyncio.sleep(0.05)
    assert lost == [held.tag]
    assert "set consumer_timeout in rabbitmq.conf" in caplog.text
    (again,) = await collect(broker, 1)
    assert again.deliveries == 2
    assert await broker.settle(acknowledged([held, again])) == [held.tag]
    await broker.close()
    # A worker stops the task, begins it again, and gives it up in the end.
    launcher = Launcher()
    conf = {"result_backend": f"sqlite:///{tmp_path / 'celery.db'}", "celeriac_delivery_limit": 2}
    ledger = Ledger(tmp_path / "ledger", launcher, url=rabbitmq_server.url, conf=conf)
    try:
        worker = await asyncio.to_thread(ledger.start_worker, "-c", "2")
        async with ledger.client as client:
            handle = await client.enqueue("ledger.work", (60.0,))
            async with asyncio.timeout(60):
                while not (letters := await client.broker.dead_letters()):
                    await asyncio.sleep(0.1)
            assert [letter.task_id for letter in letters] == [handle.id]
            assert (await handle.record()).state == "FAILURE"
        assert (ledger.lines("start")[handle.id], ledger.lines("end")[handle.id]) == (2, 0)
        assert worker.running
    finally:
        launcher.clean_up()
