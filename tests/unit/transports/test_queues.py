from __future__ import annotations

import time

import kombu
import pytest
from tests.unit.transports.conftest import Connect, Drain, publish

from celeriac.transports.storage import QueueOptions

commands = kombu.Exchange("commands", type="fanout", durable=False)


def mailbox(name: str = "worker.pidbox", **options: object) -> kombu.Queue:
    """A queue as Celery declares those of remote control and events."""
    return kombu.Queue(name, commands, **{"durable": False, "auto_delete": True, "expires": 10, **options})


def test_asking_for_a_queue_that_nobody_declared_is_a_channel_error_404(connect: Connect) -> None:
    connection = connect()

    with pytest.raises(connection.channel_errors, match="no queue 'missing'") as caught:
        connection.default_channel.queue_declare("missing", passive=True)

    assert caught.value.reply_code == "404"


def test_asking_for_a_queue_counts_what_could_be_delivered_now(connect: Connect) -> None:
    connection = connect()
    publish(connection, "now")
    publish(connection, "leased", priority=9)
    publish(connection, "later", headers={"eta": "2999-01-01T00:00:00+00:00"})
    assert connection.default_channel.basic_get("q").payload == "leased"

    assert connect().default_channel.queue_declare("q", passive=True).message_count == 1


def test_a_purge_takes_waiting_and_delayed_messages_and_says_how_many(connect: Connect) -> None:
    connection = connect()
    publish(connection, "now")
    publish(connection, "later", headers={"eta": "2999-01-01T00:00:00+00:00"})

    assert connection.default_channel.queue_purge("q") == 2
    assert connection.default_channel.queue_purge("q") == 0


def test_a_deleted_queue_is_gone_with_its_messages_and_bindings(connect: Connect) -> None:
    connection = connect()
    queue = kombu.Queue("q", commands)(connection.default_channel)
    queue.declare()
    publish(connection, "one")

    assert queue.delete() == 1
    assert list(connection.default_channel.list_bindings()) == []
    with pytest.raises(connection.channel_errors):
        queue.queue_declare(passive=True)


def test_a_queue_is_not_deleted_while_it_is_wanted(connect: Connect) -> None:
    connection = connect()
    queue = kombu.Queue("q")(connection.default_channel)
    queue.declare()
    publish(connection, "one")
    queue.delete(if_empty=True)
    Drain(connection, queue)
    queue.delete(if_unused=True)

    assert queue.queue_declare(passive=True).message_count == 1


def test_a_mailbox_goes_with_its_consumer(connect: Connect) -> None:
    connection, other = connect(), connect()
    drain = Drain(connection, mailbox(message_ttl=300))
    other.Producer().publish("ping", exchange=commands)

    drain.consumer.cancel()

    assert not other.transport.storage.exists("worker.pidbox")
    assert other.transport.storage.bindings("commands") == []


def test_a_shared_auto_delete_queue_keeps_the_tasks_that_wait_in_it(connect: Connect) -> None:
    connection, other = connect(), connect()
    queue = kombu.Queue("shared", auto_delete=True)
    drain = Drain(connection, queue, prefetch_count=1)
    Drain(other, queue)
    for number in range(3):
        publish(connection, number, "shared")
    drain.wait(1)

    drain.consumer.cancel()

    assert other.transport.storage.size("shared") == 2


def test_the_mailbox_of_a_process_that_died_expires_with_all_that_is_in_it(connect: Connect) -> None:
    connection = connect()
    storage = connection.transport.storage
    mailbox("dead.pidbox", expires=0.05)(connection.default_channel).declare()
    publish(connection, "unread", "dead.pidbox")
    until = time.monotonic() + 5
    while storage.exists("dead.pidbox") and time.monotonic() < until:
        # Whoever declares a queue of this kind, or keeps one, sweeps.
        mailbox("living.pidbox", expires=60)(connection.default_channel).declare()

    assert not storage.exists("dead.pidbox")
    assert [binding.queue for binding in storage.bindings()] == ["living.pidbox"]


def test_a_mailbox_lives_as_long_as_its_consumer_even_if_that_is_busy(connect: Connect) -> None:
    connection, other = connect(), connect()
    drain = Drain(connection, mailbox(expires=0.3))
    deadline = time.monotonic() + 0.7
    while time.monotonic() < deadline:  # the consumer does not drain; others sweep
        mailbox("other.pidbox")(other.default_channel).declare()

    other.Producer().publish("still there?", exchange=commands)

    assert drain.wait(1)[0].payload == "still there?"


def test_a_consumed_mailbox_that_somebody_dropped_comes_back_with_its_bindings(connect: Connect) -> None:
    connection, other = connect(), connect()
    drain = Drain(connection, mailbox(expires=0.3))
    other.transport.storage.delete("worker.pidbox")
    deadline = time.monotonic() + 5
    while not other.transport.storage.exists("worker.pidbox") and time.monotonic() < deadline:
        drain.settle_down(0.02)

    other.Producer().publish("back?", exchange=commands)

    assert drain.wait(1)[0].payload == "back?"


def test_a_command_that_waited_longer_than_its_ttl_is_not_delivered(connect: Connect) -> None:
    connection = connect()
    queue = mailbox(message_ttl=0.05)(connection.default_channel)
    queue.declare()
    connection.Producer().publish("shut down", exchange=commands)
    storage = connection.transport.storage
    sent = time.monotonic()
    while time.monotonic() < sent + 0.06:
        storage.version()
    connection.Producer().publish("ping", exchange=commands)

    drain = Drain(connection, queue, no_ack=True)

    assert [message.payload for message in drain.settle_down()] == ["ping"]


def test_publishers_learn_a_queues_ttl_from_whoever_declared_it(connect: Connect) -> None:
    connection, other = connect(), connect()
    kombu.Queue("replies", expires=10, message_ttl=5)(connection.default_channel).declare()

    assert other.transport.storage.queue_options("replies") == QueueOptions(10.0, 5.0)
