"""A worker's remote control with a stock client beside it, for the tests of both."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from celery import Celery
from celery._state import _set_task_join_will_block
from celery.events import EventReceiver
from celery.worker import WorkController

from celeriac import transports
from celeriac.worker.control import ControlThread
from celeriac.worker.facade import ConsumerFacade

transports.register()

HOST = "here@test"


@dataclass
class Execution:
    id: str
    name: str = "shop.add"
    args: Any = (1, 2)
    kwargs: Any = field(default_factory=dict)
    started: bool = True
    stamps: dict[str, Any] = field(default_factory=dict)
    hostname: str = HOST
    time_start: float | None = 1_700_000_000.5
    acknowledged: bool = False
    worker_pid: int | None = field(default_factory=os.getpid)
    delivery_info: dict[str, Any] = field(
        default_factory=lambda: {"exchange": "", "routing_key": "celery", "priority": 0, "redelivered": False}
    )

    @property
    def type(self) -> str:
        return self.name

    @property
    def argsrepr(self) -> str:
        return repr(self.args)

    @property
    def kwargsrepr(self) -> str:
        return repr(self.kwargs)


class Worker:
    """A worker as far as remote control is concerned: what it runs, and what it was told."""

    def __init__(self) -> None:
        self.running: dict[str, Execution] = {}
        self.totals: dict[str, int] = {}
        self.told: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()

    def executions(self) -> list[Execution]:
        return list(self.running.values())

    def active_count(self) -> int:
        return sum(execution.started for execution in self.executions())

    def total_count(self) -> dict[str, int]:
        return self.totals

    def run(self, *executions: Execution) -> None:
        self.running.update({execution.id: execution for execution in executions})

    def __getattr__(self, name: str) -> Callable[..., None]:
        if not name.startswith("on_"):
            raise AttributeError(name)

        def tell(*args: Any) -> None:
            asyncio.get_running_loop()  # actions are called on the event loop
            self.told.put_nowait((name, *args))

        return tell

    async def delayed(self) -> list[Any]:
        return []

    def describe(self, delayed: list[Any]) -> list[dict[str, Any]]:
        return list(delayed)

    async def was_told(self) -> tuple[Any, ...]:
        return await asyncio.wait_for(self.told.get(), 10)


class HeldConsumer:
    """What Celery's WorkController builds as its consumer."""

    def __init__(self, on_task_request: Any, *, app: Any, controller: Any, hostname: str, **_: Any) -> None:
        self.facade = ConsumerFacade(app, hostname, controller, Worker())
        self.blueprint = self.facade.blueprint


class Site:
    """One worker's remote control, and a stock client that talks to it."""

    def __init__(self, app: Celery, client: Celery, **options: Any) -> None:
        self.app, self.client = app, client
        self.controller = WorkController(app=app, hostname=HOST, pool="threads", concurrency=4)
        _set_task_join_will_block(
            False
        )  # Celery takes the whole process for a worker's; here are other tests, too
        self.facade: ConsumerFacade = self.controller.consumer.facade
        self.worker: Worker = self.facade.actions
        self.control = ControlThread(
            self.facade,
            app=app,
            hostname=HOST,
            executions=self.worker,
            loop=asyncio.get_running_loop(),
            **options,
        )

    async def start(self) -> None:
        self.control.start()
        assert await asyncio.to_thread(self.control.listening.wait, 10)

    async def ask(self, command: str, **arguments: Any) -> Any:
        """The worker's answer to one command."""
        answers = await asyncio.to_thread(
            self.client.control.broadcast, command, arguments, [HOST], reply=True, timeout=10, limit=1
        )
        assert len(answers) == 1
        return answers[0][HOST]

    async def cast(self, command: str, **arguments: Any) -> None:
        await asyncio.to_thread(self.client.control.broadcast, command, arguments, [HOST])


def make_app(name: str, url: str) -> Celery:
    app = Celery(name, broker=url, backend="cache+memory://", set_as_current=False)
    app.conf.broker_transport_options = {} if url.startswith("redis") else {"polling_interval": 0.01}
    app.conf.update(worker_consumer=HeldConsumer, broker_connection_timeout=1, task_default_queue="celery")
    app.finalize()

    @app.task(name="shop.add", shared=False)
    def add(a: int, b: int) -> int:
        return a + b

    return app


@contextmanager
def received_events(client: Celery, until: str) -> Iterator[Future[list[dict[str, Any]]]]:
    """Capture events as Flower does, up to the first one of type ``until``."""
    result: Future[list[dict[str, Any]]] = Future()
    ready = threading.Event()
    events: list[dict[str, Any]] = []

    class Receiver(EventReceiver):
        def on_consume_ready(self, *args: Any, **kwargs: Any) -> None:
            ready.set()

    def capture() -> None:
        with client.connection_for_read() as connection:
            receiver = Receiver(connection, app=client)

            def keep(event: dict[str, Any]) -> None:
                events.append(event)
                receiver.should_stop = event["type"] == until

            receiver.handlers["*"] = keep
            try:
                receiver.capture(timeout=10)
                result.set_result(events)
            except Exception as exc:
                result.set_exception(exc)
                raise

    thread = threading.Thread(target=capture, daemon=True)
    thread.start()
    assert ready.wait(10)
    yield result
    thread.join(10)


def wait_until(condition: Callable[[], bool], timeout: float = 15) -> None:
    """For conditions that another process or the log signals in no other way."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
