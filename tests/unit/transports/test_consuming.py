from __future__ import annotations

import socket
import threading
import time
from datetime import UTC, datetime, timedelta

import kombu
import pytest
from tests.unit.transports.conftest import Connect, Drain, publish

from celeriac.sql.messages import Draft

queue = kombu.Queue("q")


def test_messages_come_by_priority_then_by_age(connect: Connect) -> None:
    connection = connect()
    for body, priority in (("a", 0), ("b", 9), ("c", 5), ("d", 9), ("e", 99), ("f", None)):
        publish(connection, body, priority=priority)

    assert [m.payload for m in Drain(connection, queue).settle_down()] == ["b", "d", "e", "c", "a", "f"]


def test_a_task_with_an_eta_waits_in_the_broker(connect: Connect) -> None:
    connection = connect()
    drain = Drain(connection, queue)
    eta = datetime.now(UTC) + timedelta(seconds=0.15)
    publish(connection, "later", headers={"eta": eta.isoformat()})
    publish(connection, "now", headers={"eta": "2001-01-01T00:00:00+00:00"})
    publish(connection, "unreadable", headers={"eta": "soon"})

    assert [message.payload for message in drain.wait(2)] == ["now", "unreadable"]
    drain.wait(3)
    assert datetime.now(UTC) >= eta


def test_draining_without_messages_times_out_in_time(connect: Connect) -> None:
    connection = connect()
    Drain(connection, queue)
    started = time.monotonic()

    with pytest.raises(socket.timeout):
        connection.drain_events(timeout=0.1)

    assert 0.1 <= time.monotonic() - started < 1.0


def test_an_idle_consumer_wakes_soon_after_a_publish_elsewhere(connect: Connect) -> None:
    connection, other = connect(), connect()
    drain = Drain(connection, queue)
    drain.settle_down()
    published: list[float] = []

    def publish_late() -> None:
        published.append(time.monotonic())
        publish(other, "x")

    delays = []
    for number in range(9):
        timer = threading.Timer(0.02, publish_late)
        timer.start()
        drain.wait(number + 1)
        delays.append(time.monotonic() - published[-1])
        timer.join()
    assert sorted(delays)[4] < 0.05  # the median, on a machine that may be busy


def test_an_acknowledged_message_is_gone(connect: Connect) -> None:
    connection = connect()
    publish(connection, "x")
    drain = Drain(connection, queue)
    drain.wait(1)[0].ack()
    connection.close()

    assert connect().default_channel.basic_get("q") is None


def test_acknowledging_multiple_settles_everything_up_to_there(connect: Connect) -> None:
    connection = connect()
    for number in range(3):
        publish(connection, number)
    drain = Drain(connection, queue)
    drain.wait(3)[1].ack(multiple=True)
    connection.close()

    left = connect().default_channel
    assert left.basic_get("q").payload == 2
    assert left.basic_get("q") is None


def test_a_requeued_message_is_the_next_and_is_marked_as_redelivered(connect: Connect) -> None:
    connection = connect()
    for body in ("first", "second"):
        publish(connection, body)
    first = connection.default_channel.basic_get("q")
    assert "redelivered" not in first.delivery_info

    first.requeue()

    again = connection.default_channel.basic_get("q")
    assert again.payload == "first"
    assert again.delivery_info["redelivered"] is True


def test_a_rejected_message_is_laid_aside_not_lost(connect: Connect) -> None:
    connection = connect()
    publish(connection, "poison", headers={"id": "id-1", "task": "shop.pay"})
    connection.default_channel.basic_get("q").reject()

    assert connection.default_channel.basic_get("q") is None
    [dead] = dead_letters(connection)
    assert (dead.task_id, dead.task, dead.reason) == ("id-1", "shop.pay", "rejected by its consumer")


def test_closing_hands_back_what_is_not_settled_without_counting_it(connect: Connect) -> None:
    for _ in range(7):  # more often than the delivery limit
        connection = connect()
        if _ == 0:
            publish(connection, "one")
            publish(connection, "two")
        drain = Drain(connection, queue, prefetch_count=2)
        assert [message.payload for message in drain.wait(2)] == ["one", "two"]
        assert "redelivered" not in drain.messages[0].delivery_info
        connection.close()


def test_what_was_prefetched_but_not_delivered_goes_back_when_the_consumer_is_cancelled(
    connect: Connect,
) -> None:
    connection = connect()
    for number in range(5):
        publish(connection, number)
    drain = Drain(connection, queue)
    drain.wait(1)

    drain.consumer.cancel()

    assert [connect().default_channel.basic_get("q").payload for _ in range(1)] == [1]
    drain.messages[0].ack()


def test_commands_that_were_fetched_but_not_delivered_go_back_too(connect: Connect) -> None:
    connection = connect()
    for number in range(3):
        publish(connection, number)
    drain = Drain(connection, queue, no_ack=True)
    drain.wait(1)
    drain.consumer.cancel()

    channel = connect().default_channel
    assert {channel.basic_get("q").payload for _ in range(2)} == {1, 2}


def test_no_more_than_the_prefetch_count_is_out_at_once(connect: Connect) -> None:
    connection = connect()
    for number in range(5):
        publish(connection, number)
    drain = Drain(connection, queue, prefetch_count=2)
    assert len(drain.settle_down()) == 2

    drain.messages[0].ack()

    assert len(drain.settle_down()) == 3


def test_room_made_by_another_thread_is_used_at_once(connect: Connect) -> None:
    connection = connect(polling_interval=30)
    for number in range(2):
        publish(connection, number)
    drain = Drain(connection, queue, prefetch_count=1)
    drain.wait(1)
    timer = threading.Timer(0.05, drain.messages[0].ack)
    timer.start()

    assert len(drain.wait(2, timeout=10)) == 2
    timer.join()


def test_a_message_stays_with_a_consumer_that_works_longer_than_the_lease(connect: Connect) -> None:
    connection, other = connect(visibility_timeout=0.3), connect()
    publish(connection, "long")
    drain = Drain(connection, queue)
    drain.wait(1)

    with pytest.raises(socket.timeout):
        Drain(other, queue).wait(1, timeout=1.0)

    drain.messages[0].ack()
    connection.close()
    assert other.transport.storage.take([_order()], 30.0) == [[]]


def test_a_message_whose_consumer_died_comes_back_when_its_lease_ends(connect: Connect) -> None:
    connection = connect()
    publish(connection, "x")
    connection.transport.storage.take([_order()], 0.1)  # and nobody renews it

    [message] = Drain(connection, queue).wait(1)
    assert message.delivery_info["redelivered"] is True


def test_a_consumer_that_lost_its_lease_cannot_settle_the_message(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    connection, other = connect(visibility_timeout=0.05), connect()
    storage = other.transport.storage
    publish(connection, "x")
    message = connection.default_channel.basic_get("q")
    connection.transport._keeper.stop()  # as when its process is suspended
    deadline = time.monotonic() + 5
    taken: list[object] = []
    while not taken and time.monotonic() < deadline:
        [taken] = storage.take([_order()], 30.0)

    message.ack()

    assert "Too late to settle" in caplog.text
    assert storage.settle([_ending(taken[0])]) == set()


def test_an_unknown_tag_is_ignored(connect: Connect) -> None:
    channel = connect().default_channel
    channel.basic_ack("7.1")
    channel.basic_reject("nonsense", requeue=True)


def test_a_message_that_ends_its_consumers_is_dead_lettered_instead_of_a_sixth_delivery(
    connect: Connect,
) -> None:
    connection = connect()
    publish(connection, "deadly", headers={"id": "id-1", "task": "shop.crash"})
    for _ in range(5):
        connection.default_channel.basic_get("q").requeue()

    assert connection.default_channel.basic_get("q") is None
    [dead] = dead_letters(connection)
    assert (dead.deliveries, dead.reason) == (5, "delivered 5 times without an outcome")


def test_the_delivery_limit_is_an_option(connect: Connect) -> None:
    connection = connect(delivery_limit=1)
    publish(connection, "deadly")
    connection.default_channel.basic_get("q").requeue()

    assert Drain(connection, queue).settle_down() == []
    assert len(dead_letters(connection)) == 1


@pytest.mark.parametrize(
    "envelope", ["", "not json", "[]", "{}", '{"properties": null}', '{"body": 5, "properties": {}}']
)
def test_what_is_no_message_is_dead_lettered_and_the_next_one_delivered(
    connect: Connect, caplog: pytest.LogCaptureFixture, envelope: str
) -> None:
    connection = connect()
    connection.transport.storage.put([Draft("q", envelope)])
    publish(connection, "sound")

    [message] = Drain(connection, queue).settle_down()

    assert message.payload == "sound"
    assert [dead.reason.startswith("The envelope") for dead in dead_letters(connection)] == [True]
    assert caplog.text.count("Dead-lettered") == 1


def test_a_full_task_queue_does_not_keep_a_command_waiting(connect: Connect) -> None:
    connection = connect(polling_interval=0.0001)
    for number in range(50):
        publish(connection, number)
    served: list[object] = []
    tasks = Drain(connection, queue)
    commands = Drain(connection, kombu.Queue("pidbox"), channel=connection.channel(), no_ack=True)
    tasks.messages = commands.messages = served
    connection.drain_events(timeout=1)

    publish(connection, "ping", "pidbox")
    while not any(message.payload == "ping" for message in served):
        connection.drain_events(timeout=1)

    assert len(served) < 10


def test_two_consumers_of_one_queue_share_its_messages(connect: Connect) -> None:
    connection = connect()
    drains = [Drain(connection, queue), Drain(connection, queue)]
    for number in range(4):
        publish(connection, number)
    drains[0].settle_down()

    assert [len(drain.messages) for drain in drains] == [2, 2]


def test_messages_are_published_and_settled_from_many_threads(connect: Connect) -> None:
    connection = connect()
    drain = Drain(connection, queue)

    def publish_some(number: int) -> None:
        with connection.clone() as own:
            for each in range(10):
                publish(own, number * 10 + each)

    threads = [threading.Thread(target=publish_some, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    received = [message.payload for message in drain.wait(40)]
    ackers = [threading.Thread(target=message.ack) for message in drain.messages]
    for thread in threads + ackers:
        if thread in ackers:
            thread.start()
        thread.join()
    connection.close()

    assert sorted(received) == list(range(40))
    assert connect().default_channel.basic_get("q") is None


def dead_letters(connection: kombu.Connection) -> list[object]:
    storage = connection.transport.storage
    if hasattr(storage, "_queues"):
        return storage._queues.dead_letters("q", 10)
    from celeriac.sql import messages

    return storage._engine.read(lambda database: messages.dead_letters(database, "q", 10))


def _order() -> object:
    from celeriac.transports.storage import Order

    return Order(("q",), 1, no_ack=False)


def _ending(taken: object) -> object:
    from celeriac.sql.messages import Ending

    return Ending(taken.tag)
