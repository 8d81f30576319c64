"""RabbitMQ takes a message, and the connection ends before it has said so: nobody is told that there is no task."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.services import Proxy, RabbitMQServer

from celeriac import Celery
from celeriac.errors import PublishTimeout


@pytest.mark.parametrize("how", ["alone", "many"])
async def test_a_task_whose_connection_ended_before_its_confirm_keeps_its_record(
    rabbitmq: RabbitMQServer, rabbitmq_url: str, tmp_path: Path, how: str
) -> None:
    store = f"sqlite:///{tmp_path / 'celery.db'}"
    here = Celery("shop", broker=rabbitmq_url, backend=store, set_as_current=False)
    async with Proxy(rabbitmq.host, rabbitmq.port) as proxy, here:
        vhost = rabbitmq_url.rpartition("/")[2]
        url = f"amqp://guest:guest@{proxy.host}:{proxy.port}/{vhost}"
        app = Celery("shop", broker=url, backend=store, set_as_current=False)
        app.conf.celeriac_publish_deadline = 20
        async with app:
            await app.enqueue("shop.add", (1, 2))
            proxy.blackhole(requests=False)
            if how == "alone":
                enqueuing = asyncio.ensure_future(app.enqueue("shop.add", (3, 4), task_id="known"))
            else:
                signature = app.signature("shop.add", (3, 4)).set(task_id="known")
                enqueuing = asyncio.ensure_future(app.enqueue_many([signature]))  # type: ignore[assignment]
            async with asyncio.timeout(10):
                while await here.queue_size("celery") < 2:
                    await asyncio.sleep(0.02)
                proxy.cut()
                with pytest.raises(
                    PublishTimeout, match=r"did not confirm: RabbitMQ at .* may or may not have been"
                ):
                    await enqueuing
            await proxy.heal()
        assert await here.queue_size("celery") == 2
        records = await here.store.get(["known"])
        assert ("known" in records) is (how == "many")  # alone it is not known yet: its sender may come again
