"""The quickstart on each broker, where nothing but the broker's URL is different: one run that lets it all happen.

What does not apply: SQLite and files have no server that could be restarted, and the Redis of this run keeps its data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.acceptance.processes import Launcher
from tests.acceptance.quickstart import Quickstart
from tests.services import KafkaServer, RabbitMQServer, RedisServer, SQSServer, ZooKeeperServer

CSV = "a,b\n" + "1,2\n" * 10

#: For the app of each run: a killed worker is noticed after two seconds.
SETTINGS = "\ncelery.conf.celeriac_lease = 2\n"
CLASSIC = (
    '\ncelery.conf.update(task_default_queue_type="classic", task_create_missing_queue_type="classic")\n'
)


@dataclass
class Place:
    """A broker: its URL, what the app's settings say of it, and how it is restarted, if it can be."""

    env: dict[str, str] = field(default_factory=dict)
    settings: str = ""
    restart: Callable[[], None] | None = None


def sqlite(_: ExitStack) -> Place:
    return Place()


def redis(stack: ExitStack) -> Place:
    server = stack.enter_context(RedisServer(append_only=True))
    return Place({"CELERY_BROKER_URL": server.url}, restart=server.restart)


def rabbitmq_quorum(stack: ExitStack) -> Place:
    server = stack.enter_context(RabbitMQServer())
    return Place({"CELERY_BROKER_URL": server.url}, restart=server.restart)


def rabbitmq_classic(stack: ExitStack) -> Place:
    server = stack.enter_context(RabbitMQServer())
    return Place({"CELERY_BROKER_URL": server.url}, CLASSIC, server.restart)


def sqs(stack: ExitStack) -> Place:
    server = stack.enter_context(SQSServer(durable=True))
    settings = f"\ncelery.conf.broker_transport_options = {server.new_options()!r}\n"
    return Place({"CELERY_BROKER_URL": server.url}, settings, server.restart)


def sqla(stack: ExitStack) -> Place:
    return Place({"CELERY_BROKER_URL": "sqla+sqlite:///broker.db"})


def filesystem(stack: ExitStack) -> Place:
    return Place({"CELERY_BROKER_URL": "filesystem://"})


def kafka(stack: ExitStack) -> Place:
    server = stack.enter_context(KafkaServer())
    # A member of the group that is gone is missed after two seconds, too.
    options = {"kafka_consumer_config": {"session.timeout.ms": 2000, "heartbeat.interval.ms": 500}}
    settings = f"\ncelery.conf.broker_transport_options = {options!r}\n"
    return Place({"CELERY_BROKER_URL": server.url}, settings, server.restart)


def zookeeper(stack: ExitStack) -> Place:
    server = stack.enter_context(ZooKeeperServer())
    return Place({"CELERY_BROKER_URL": server.new_chroot()}, restart=server.restart)


@pytest.fixture(
    params=[sqlite, redis, rabbitmq_quorum, rabbitmq_classic, sqla, filesystem, sqs, kafka, zookeeper],
    ids=lambda make: make.__name__,
)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Each broker in turn."""
    with ExitStack() as stack:
        yield request.param(stack)


@pytest.fixture
def app(tmp_path: Path, launcher: Launcher, place: Place) -> Quickstart:
    """The quickstart, whose data takes a second."""
    app = Quickstart(tmp_path / "quickstart", launcher, {**place.env, "STEP_SECONDS": "0.5"})
    with (app.folder / "worker" / "celery_app.py").open("a") as file:
        file.write(SETTINGS + place.settings)
    return app


@pytest.mark.timeout(240)  # servers on Java start slowly where other things run, too
def test_fifty_tasks_outlive_workers_and_the_broker(app: Quickstart, place: Place) -> None:
    app.start_api()
    # Nobody works yet: one of them is cancelled, one has to wait for its time.
    cancelled = app.process_data(CSV)
    assert app.http.post(f"/tasks/{cancelled}/cancel").json()["cancelled"]
    call = app.celery("call", "worker.tasks.heartbeat", "--countdown=3")
    assert call.wait() == 0
    delayed = call.output.strip().splitlines()[-1]

    worker = app.start_worker(
        "-c", "10", env={"FAILURE_RATE": "0.3", "DEFAULT_RETRY_DELAY": "1", "MAX_RETRIES": "9"}
    )
    ids = [app.process_data(CSV, user_id) for user_id in range(50)]
    app.wait_for_status(ids[0], "PROGRESS", "STARTED", "RETRY", "SUCCESS")
    running = next(task_id for task_id in ids if app.status(task_id)["status"] != "SUCCESS")
    worker.kill()
    if place.restart is not None:
        place.restart()
    again = app.start_worker("-c", "20")

    for task_id in [*ids, running]:
        assert app.wait_for_status(task_id, timeout=60)["status"] == "SUCCESS"
    assert app.status(cancelled)["status"] == "REVOKED"
    record = app.record(delayed)
    assert app.wait_for_status(delayed)["status"] == "SUCCESS", record
    assert max(len(app.record(task_id)["attempts"]) for task_id in ids) <= 12
    assert app.http.get("/tasks", params={"state": "STARTED"}).json()["items"] == []

    # While it sits there idle, the broker is away and comes back.
    if place.restart is not None:
        place.restart()
    last = app.process_data(CSV)
    assert app.wait_for_status(last)["status"] == "SUCCESS"
    again.terminate()
    assert again.wait() == 0
