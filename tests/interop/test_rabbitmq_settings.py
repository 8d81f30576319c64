"""Celery's settings about queues of RabbitMQ, between stock Celery and celeriac: priorities, remote control."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from tests.interop.redis_site import Site, running_site, unique
from tests.services import RabbitMQServer, RedisServer

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module")
def site(rabbitmq: RabbitMQServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    url = rabbitmq.new_vhost()
    settings = {
        "broker_url": url,
        "result_backend": "rpc://",
        "task_queue_max_priority": 9,
        "control_queue_ttl": 7,
        "control_queue_expires": 33,
        "celeriac_records_url": f"sqlite:///{tmp_path_factory.mktemp('records') / 'celery.db'}",
    }
    with RedisServer() as server, running_site(server, **settings) as site:
        yield site
    rabbitmq.delete_vhost(url)


@pytest.mark.parametrize(("client", "worker"), [("stock", "ours"), ("ours", "stock")])
def test_the_higher_number_comes_first(
    site: Site, rabbitmq: RabbitMQServer, client: str, worker: str
) -> None:
    queue, name = unique("ranked"), unique()
    if client == "stock":
        stock = site.stock_client()
        for priority in (1, 9, 0, 5):
            options = {"queue": queue, "priority": priority}
            stock("note.apply_async((name, options['priority']), **options).id", name=name, options=options)
    else:
        app = site.our_client()

        async def enqueue() -> None:
            async with app:
                for priority in (1, 9, 0, 5):
                    await app.tasks["note"].using(queue=queue, priority=priority).enqueue(name, priority)

        asyncio.run(enqueue())
    one = ("-c", "1") if worker == "ours" else ("-P", "solo")
    process = site.worker(worker, queue, *one)
    assert site.notes(name, 4) == ["9", "5", "1", "0"]
    # Its own queue for remote control.
    asked = rabbitmq.api("GET", f"queues/{site.settings['broker_url'].rpartition('/')[2]}")
    (control,) = (each for each in asked if each["name"] == f"{queue}@site.celery.pidbox")
    assert control["arguments"] == {"x-message-ttl": 7000, "x-expires": 33000}
    assert (control["durable"], control["exclusive"]) == (False, True)
    process.terminate()
