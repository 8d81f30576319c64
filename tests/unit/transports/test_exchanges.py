from __future__ import annotations

import kombu
import pytest
from tests.unit.transports.conftest import Connect, Drain

events = kombu.Exchange("events", type="topic", durable=False)
commands = kombu.Exchange("commands", type="fanout", durable=False)
tasks = kombu.Exchange("tasks", type="direct")


def bodies(drain: Drain) -> list[object]:
    return [message.payload for message in drain.settle_down()]


def test_a_direct_exchange_finds_the_queues_of_its_routing_key(connect: Connect) -> None:
    consuming, publishing = connect(), connect()
    high = Drain(consuming, kombu.Queue("high", tasks, routing_key="high"))
    low = Drain(consuming, kombu.Queue("low", tasks, routing_key="low"), channel=consuming.channel())

    publishing.Producer().publish("urgent", exchange=tasks, routing_key="high")

    assert bodies(high) == ["urgent"]
    assert bodies(low) == []


@pytest.mark.parametrize(
    ("pattern", "found"),
    [("#", ["task.sent", "worker.online"]), ("task.#", ["task.sent"]), ("*.online", ["worker.online"])],
)
def test_a_topic_exchange_finds_queues_by_wildcards(connect: Connect, pattern: str, found: list[str]) -> None:
    consuming, publishing = connect(), connect()
    monitor = Drain(consuming, kombu.Queue("monitor", events, routing_key=pattern))

    for key in ("task.sent", "worker.online"):
        publishing.Producer().publish(key, exchange=events, routing_key=key)

    assert bodies(monitor) == found


def test_a_fanout_exchange_reaches_every_queue_of_every_connection(connect: Connect) -> None:
    first, second, publishing = connect(), connect(), connect()
    drains = [
        Drain(connection, kombu.Queue(name, commands))
        for connection, name in ((first, "one.pidbox"), (second, "two.pidbox"))
    ]

    publishing.Producer().publish("ping", exchange=commands)

    assert [bodies(drain) for drain in drains] == [["ping"], ["ping"]]


def test_a_queue_that_matches_twice_gets_one_copy(connect: Connect) -> None:
    connection = connect()
    queue = kombu.Queue("monitor", [kombu.binding(events, "task.#"), kombu.binding(events, "*.sent")])
    monitor = Drain(connection, queue)

    connection.Producer().publish("event", exchange=events, routing_key="task.sent")

    assert bodies(monitor) == ["event"]


def test_a_message_that_nobody_is_bound_for_is_dropped_without_a_write(connect: Connect) -> None:
    watching, publishing = connect(), connect()
    publishing.default_channel.exchange_declare("events", type="topic")
    version = watching.transport.storage.version()

    publishing.Producer().publish("event", exchange=events, routing_key="task.sent")

    assert watching.transport.storage.version() == version


def test_an_unbound_queue_gets_nothing_more(connect: Connect) -> None:
    connection = connect()
    queue = kombu.Queue("high", tasks, routing_key="high")(connection.default_channel)
    queue.declare()
    queue.queue_unbind()

    connection.Producer().publish("late", exchange=tasks, routing_key="high")

    assert queue.queue_declare(passive=True).message_count == 0


def test_deleting_an_exchange_leaves_the_queues(connect: Connect) -> None:
    connection = connect()
    queue = kombu.Queue("high", tasks, routing_key="high")(connection.default_channel)
    queue.declare()
    connection.Producer().publish("kept", exchange=tasks, routing_key="high")

    queue.exchange.delete()

    assert list(connection.default_channel.list_bindings()) == []
    assert queue.queue_declare(passive=True).message_count == 1


def test_bindings_are_listed_for_management(connect: Connect) -> None:
    connection = connect()
    kombu.Queue("high", tasks, routing_key="h")(connection.default_channel).declare()

    assert connect().get_manager().get_bindings() == [
        {"destination": "high", "source": "tasks", "routing_key": "h"}
    ]


def test_a_direct_message_without_route_goes_to_the_dead_letter_queue_of_kombus_option(
    connect: Connect,
) -> None:
    connection = connect(deadletter_queue="lost")
    connection.default_channel.exchange_declare("tasks", type="direct")

    connection.Producer().publish("stray", exchange=tasks, routing_key="nowhere")

    assert connection.default_channel.queue_declare("lost", passive=True).message_count == 1
