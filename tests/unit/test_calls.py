"""Calls that are built here, against what stock Celery publishes for the same options: message, place and time."""

from __future__ import annotations

import asyncio
import base64
import json
import pickle
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import celery
import pytest
from celery import chain, chord, group
from celery.canvas import Signature, StampingVisitor
from celery.exceptions import QueueNotFound
from celery.utils.nodenames import worker_direct
from kombu import Exchange, Queue, serialization
from kombu.common import Broadcast
from kombu.transport import memory

from celeriac.brokers.exchanges import to_queues
from celeriac.brokers.memory import MemoryBroker
from celeriac.calls import Call, CallBuilder, NotNative
from celeriac.protocol import envelope
from celeriac.routing import bindings_of

ETA = datetime(2031, 2, 3, 4, 5, 6, 789, tzinfo=UTC)
ABROAD = timezone(timedelta(hours=5, minutes=30))
MEDIA = Exchange("media", "topic")

Sent = dict[str, dict[str, Any]]


def accept_anything(*args: Any, **kwargs: Any) -> None:
    """A task's function."""


class Stock(celery.Celery):  # type: ignore[misc]
    """A plain app that remembers what its tasks and its canvas give to ``send_task``."""

    def __init__(self, conf: Mapping[str, Any]) -> None:
        super().__init__("golden", broker="memory://", backend="cache+memory://", set_as_current=False)
        self.mark = uuid.uuid4().hex[:8]
        self.conf.update({"task_default_queue": f"default-{self.mark}", **conf})
        self.given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def send_task(self, *args: Any, **options: Any) -> Any:
        options["task_id"] = options.get("task_id") or str(uuid.uuid4())
        self.given.append((args, dict(options)))
        return super().send_task(*args, **options)


@pytest.fixture
def new_stock() -> Iterator[Callable[..., Stock]]:
    made: list[Stock] = []

    def new(**conf: Any) -> Stock:
        made.append(Stock(conf))
        return made[-1]

    emptied()
    yield new
    for each in made:
        each.close()
    emptied()


def emptied() -> list[tuple[str, dict[str, Any]]]:
    """What is in the queues of kombu's memory transport, taken out of them."""
    found = []
    for name, queue in list(memory.Channel.queues.items()):
        while queue.qsize():
            found.append((name, queue.get(block=False)))
    return found


def declare(app: Stock) -> None:
    """What a stock worker does with its queues."""
    with app.connection_for_write() as connection:
        for queue in app.amqp.queues.values():
            queue(connection.default_channel).declare()


def natively(
    app: Stock, build: Callable[[], list[Call]]
) -> tuple[list[Call], list[tuple[str, dict[str, Any]]]]:
    """The calls, built on an event loop, and where our broker puts them, as envelopes."""
    return asyncio.run(_natively(app, build))


async def _natively(
    app: Stock, build: Callable[[], list[Call]]
) -> tuple[list[Call], list[tuple[str, dict[str, Any]]]]:
    calls = build()
    broker = MemoryBroker(uuid.uuid4().hex)
    await broker.open()
    for queue in app.amqp.queues.values():
        await broker.bind(bindings_of(queue))
    publications = await to_queues(broker.bindings, [call.publication for call in calls])
    return calls, [
        (
            each.queue,
            json.loads(
                envelope.encode(
                    each.message,
                    exchange=each.exchange,
                    routing_key=each.routing_key,
                    delivery_tag="",
                    priority=each.priority,
                )
            ),
        )
        for each in publications
    ]


def readable(raw: Mapping[str, Any]) -> dict[str, Any]:
    """An envelope with its body decoded, without what is different each time."""
    raw = json.loads(json.dumps(raw, default=str))
    body = base64.b64decode(raw.pop("body"))
    headers, properties = raw["headers"], raw["properties"]
    if compression := headers.get("compression"):
        from kombu.compression import decompress

        body = decompress(body, compression)
    content_type = raw["content-type"]
    decoded = serialization.loads(body, content_type, raw["content-encoding"], accept=[content_type])
    properties.pop("delivery_tag")
    # Celery gives these to the message as properties too, where nobody looks for them.
    for name in ("argsrepr", "kwargsrepr", "origin"):
        properties.pop(name, None)
    return {**raw, "properties": properties, "headers": headers, "body": json.loads(json.dumps(decoded))}


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    ours, theirs = readable(ours), readable(theirs)
    for name in ("eta", "expires"):
        ours_at, theirs_at = (each["headers"].pop(name) for each in (ours, theirs))
        if theirs_at is None or ours_at == theirs_at:
            assert ours_at == theirs_at, name
            continue
        mine, stock = datetime.fromisoformat(ours_at), datetime.fromisoformat(theirs_at)
        assert mine.utcoffset() == stock.utcoffset(), name
        assert abs(mine - stock) < timedelta(seconds=5), name
    left, right = (each["properties"].pop("expiration", None) for each in (ours, theirs))
    assert (left is None) == (right is None)
    assert abs(int(left or 0) - int(right or 0)) < 5000
    assert ours == theirs


def compare(app: Stock, publish: Callable[[], object]) -> list[Call]:
    """Publish by Celery, build the same calls here, and compare all that arrives anywhere."""
    declare(app)
    emptied()
    _ = app.timezone  # as a connection does in a thread: it reads a file
    publish()
    theirs = emptied()
    assert theirs

    def build() -> list[Call]:
        builder = CallBuilder(app)
        return [
            builder.build(name, *([*arguments, None][:2] if arguments else [None, None]), options)
            for (name, *arguments), options in app.given
        ]

    calls, ours = natively(app, build)
    key = lambda sent: (sent[0], sent[1]["headers"]["id"])  # noqa: E731
    assert sorted(map(key, ours)) == sorted(map(key, theirs))
    for (_, mine), (_, stock) in zip(sorted(ours, key=key), sorted(theirs, key=key), strict=True):
        assert_same(mine, stock)
    return calls


def by_task(app: Stock, options: Mapping[str, Any], **task_options: Any) -> Callable[[], object]:
    task = app.task(accept_anything, name="golden.task", shared=False, **task_options)
    return lambda: task.apply_async((1, "ż"), {"a": 2}, task_id="the-id", **options)


OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "eta": {"eta": ETA},
    "eta abroad": {"eta": ETA.astimezone(ABROAD)},
    "naive eta": {"eta": ETA.replace(tzinfo=None)},
    "eta as text": {"eta": ETA.isoformat()},
    "countdown": {"countdown": 30},
    "no countdown": {"countdown": 0},
    "countdown in the past": {"countdown": -5},
    "expires in seconds": {"expires": 60.5},
    "expires at": {"expires": ETA},
    "expires at a naive time": {"expires": ETA.replace(tzinfo=None)},
    "expires as text": {"expires": ETA.isoformat()},
    "expired": {"expires": datetime(2020, 1, 1, tzinfo=UTC)},
    "expired seconds ago": {"expires": -3},
    "expires now": {"expires": 0},
    "countdown and expires": {"countdown": 3, "expires": 9},
    "priority": {"priority": 7},
    "priority zero": {"priority": 0},
    "time limits": {"time_limit": 9, "soft_time_limit": 2.5},
    "hard limit": {"time_limit": 9},
    "shadow": {"shadow": "other"},
    "headers": {"headers": {"x": {"y": ["ż"]}, "lang": "?"}},
    "stamped by hand": {"stamped_headers": ["customer"], "customer": ["ż", 1]},
    "ignore_result": {"ignore_result": True},
    "reprs": {"argsrepr": "***", "kwargsrepr": "***"},
    "reply_to": {"reply_to": "here"},
    "no reply_to": {"reply_to": ""},
    "correlation_id": {"correlation_id": "c"},
    "properties": {"user_id": "u", "app_id": "a", "message_id": "m"},
    "delivery mode": {"delivery_mode": 1},
    "delivery mode by name": {"delivery_mode": "transient"},
    "tree": {"root_id": "root", "parent_id": "parent"},
    "group": {"group_id": "g", "group_index": 3},
    "retries": {"retries": 2},
    "replaced": {"replaced_task_nesting": 2},
    "origin": {"origin": "elsewhere"},
    "how, not what": {"retry": False, "retry_policy": {"max_retries": 1}, "add_to_parent": False},
    "queue": {"queue": "by-name"},
    "queue object": {"queue": Queue("by-object", Exchange("by-object"), "by-object")},
    "queue without exchange": {"queue": Queue("bare")},
    "json": {"serializer": "json"},
    "msgpack": {"serializer": "msgpack"},
    "yaml": {"serializer": "yaml"},
    "pickle": {"serializer": "pickle"},
    "gzip": {"compression": "gzip"},
    "bzip2": {"compression": "bzip2", "headers": {"x": 1}},
    "pickle in lzma": {"serializer": "pickle", "compression": "lzma"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_of_a_call(new_stock: Callable[..., Stock], options: dict[str, Any]) -> None:
    app = new_stock()
    [call] = compare(app, by_task(app, options))
    assert call.record.task_id == call.task_id == "the-id"
    assert json.loads(call.record.args or "") == [1, "ż"]


TASKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "serializer": ({"serializer": "pickle"}, {}),
    "another serializer": ({"serializer": "pickle"}, {"serializer": "json"}),
    "no serializer": ({"serializer": "pickle"}, {"serializer": None}),
    "compression": ({"compression": "gzip"}, {}),
    "expires": ({"expires": 30}, {}),
    "expires never": ({"expires": 30}, {"expires": None}),
    "limits": ({"time_limit": 9, "soft_time_limit": 3}, {}),
    "no limit": ({"time_limit": 9, "soft_time_limit": 3}, {"time_limit": None}),
    "ignore_result": ({"ignore_result": True}, {}),
    "result wanted": ({"ignore_result": True}, {"ignore_result": False}),
    "queue": ({"queue": "own"}, {}),
    "another queue": ({"queue": "own"}, {"queue": "asked"}),
    "priority": ({"priority": 4}, {}),
    "another priority": ({"priority": 4}, {"priority": 5}),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::celery.exceptions.CPendingDeprecationWarning")
@pytest.mark.filterwarnings("ignore::celery.exceptions.CDeprecationWarning")
@pytest.mark.parametrize(("task", "options"), TASKS.values(), ids=TASKS)
def test_options_of_a_task(
    new_stock: Callable[..., Stock], task: dict[str, Any], options: dict[str, Any]
) -> None:
    app = new_stock()
    compare(app, by_task(app, options, **task))
    # Who calls it by its name leaves it to the worker whether the result is kept; we say what we know.
    app.given.clear()
    options = {"ignore_result": False, **options}
    compare(app, lambda: app.send_task("golden.task", (1,), task_id="by-name", **options))


def by_function(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **rest: Any) -> Any:
    if args and args[0] == 1 and options.get("priority") == 3:
        return {"queue": "by-function", "routing_key": "unused"}
    return None


class ByClass:
    def route_for_task(self, task: str, args: Any = None, kwargs: Any = None) -> Any:
        return "by-class" if kwargs and kwargs.get("a") == 2 else None


QUEUES = [
    Queue("plain", Exchange("plain"), "plain"),
    Queue("videos", MEDIA, "media.video.#"),
    Queue("images", MEDIA, "media.image.*"),
    Queue("all-media", MEDIA, "media.#"),
    Queue("fan-1", Exchange("fan", "fanout")),
    Queue("fan-2", Exchange("fan", "fanout")),
    Queue("keyed", Exchange("direct-one", "direct"), "the-key"),
    Queue("transient", Exchange("transient", delivery_mode="transient"), "transient"),
]

ROUTES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dict": ({"task_routes": {"golden.task": {"queue": "routed", "priority": 2}}}, {}),
    "dict of names": ({"task_routes": {"golden.task": "routed"}}, {}),
    "the call wins": (
        {"task_routes": {"golden.task": {"queue": "routed", "priority": 2}}},
        {"queue": "asked", "priority": 1},
    ),
    "none is no answer": (
        {"task_routes": {"golden.task": {"queue": "routed", "priority": 2}}},
        {"priority": None},
    ),
    "any option": (
        {"task_routes": {"golden.*": {"queue": "routed", "serializer": "yaml", "delivery_mode": 1}}},
        {},
    ),
    "glob": ({"task_routes": {"gold*": {"queue": "by-glob"}}}, {}),
    "regex": ({"task_routes": {re.compile(r"(golden|silver)\..*"): {"queue": "by-regex"}}}, {}),
    "list": ({"task_routes": ([("other.*", "other"), ("golden.*", {"queue": "listed"})],)}, {}),
    "list of routers": ({"task_routes": [{"other": "other"}, {"golden.task": "second"}]}, {}),
    "function": ({"task_routes": (by_function,)}, {"priority": 3}),
    "function that does not know": ({"task_routes": (by_function,)}, {"priority": 4}),
    "class": ({"task_routes": (ByClass(),)}, {}),
    "function before dict": ({"task_routes": (by_function, {"golden.task": "after"})}, {}),
    "queues": ({"task_queues": QUEUES, "task_default_queue": "plain"}, {}),
    "queues as a dict": (
        {"task_queues": {"x": {"exchange": "ex", "routing_key": "rx"}}, "task_default_queue": "x"},
        {},
    ),
    "topic queue": ({"task_queues": QUEUES}, {"queue": "videos"}),
    "topic": ({"task_queues": QUEUES}, {"queue": "videos", "routing_key": "media.image.png"}),
    "topic by route": (
        {
            "task_queues": QUEUES,
            "task_routes": {"golden.*": {"queue": "all-media", "routing_key": "media.video.x.y"}},
        },
        {},
    ),
    "fanout": ({"task_queues": QUEUES}, {"queue": "fan-1"}),
    "exchange and key": (
        {"task_queues": QUEUES, "task_default_queue": "plain"},
        {"exchange": "direct-one", "routing_key": "the-key"},
    ),
    "exchange object": (
        {"task_queues": QUEUES, "task_default_queue": "plain"},
        {"exchange": Exchange("direct-one"), "routing_key": "the-key"},
    ),
    "exchange alone": ({"task_queues": QUEUES, "task_default_queue": "plain"}, {"exchange": "direct-one"}),
    "key alone": ({"task_queues": QUEUES, "task_default_queue": "plain"}, {"routing_key": "the-key"}),
    "the queue's delivery mode": ({"task_queues": QUEUES}, {"queue": "transient"}),
    "default names": (
        {"task_default_exchange": "dx", "task_default_routing_key": "dk", "task_default_queue": "dq"},
        {},
    ),
    "default topic": (
        {
            "task_default_exchange": "dt",
            "task_default_exchange_type": "topic",
            "task_default_routing_key": "d.k",
            "task_default_queue": "dtq",
        },
        {},
    ),
    "missing queues of a topic": (
        {"task_create_missing_queue_exchange_type": "topic", "task_queues": QUEUES},
        {"queue": "missing-topic"},
    ),
    "missing quorum queues": ({"task_create_missing_queue_type": "quorum"}, {"queue": "missing"}),
    "priorities": ({"task_queue_max_priority": 10, "task_default_priority": 5}, {}),
    "other priority": ({"task_default_priority": 5}, {"priority": 6}),
    "default delivery mode": ({"task_default_delivery_mode": "transient"}, {}),
    "default serializer": ({"task_serializer": "pickle"}, {}),
    "default compression": ({"task_compression": "zlib"}, {}),
    "time zone": ({"timezone": "Asia/Kathmandu"}, {"countdown": 60, "expires": 120}),
    "no UTC": (
        {"timezone": "Asia/Kathmandu", "enable_utc": False},
        {"countdown": 60, "expires": ETA.replace(tzinfo=None)},
    ),
    "direct to a worker": ({"worker_direct": True}, {"queue": worker_direct("w1@host")}),
    "short reprs": ({"task_repr_maxlevels": 1}, {}),
    "results not wanted": ({"task_ignore_result": True}, {}),
    "limits": ({"task_time_limit": 60, "task_soft_time_limit": 50}, {}),
}


@pytest.mark.parametrize(("conf", "options"), ROUTES.values(), ids=ROUTES)
def test_routes(new_stock: Callable[..., Stock], conf: dict[str, Any], options: dict[str, Any]) -> None:
    app = new_stock(**conf)
    publish = by_task(app, options)
    calls = compare(app, publish)
    # What is remembered of the first call serves the second one as well.
    again = CallBuilder(app)
    (name, args, kwargs), given = app.given[0]
    first, second = (again.build(name, args, kwargs, given).publication for _ in range(2))
    assert first.queue == second.queue == calls[0].publication.queue
    first_properties, second_properties = (dict(each.message.properties) for each in (first, second))
    for properties in (first_properties, second_properties):
        properties.pop("expiration", None)  # time goes by
    assert first_properties == second_properties


@pytest.mark.parametrize(
    "options", [{}, {"priority": 3}, {"queue": "asked"}, {"serializer": "yaml"}], ids=str
)
@pytest.mark.parametrize("conf", [{}, {"task_default_priority": 5}, {"task_serializer": "pickle"}], ids=str)
def test_calls_of_tasks_that_nobody_knows_here(
    new_stock: Callable[..., Stock], conf: dict[str, Any], options: dict[str, Any]
) -> None:
    app = new_stock(**conf)
    compare(app, lambda: app.send_task("elsewhere", (1,), task_id="unknown", **options))


def test_a_queue_that_must_not_be_created(new_stock: Callable[..., Stock]) -> None:
    app = new_stock(task_create_missing_queues=False, task_queues=QUEUES, task_default_queue="plain")
    builder = CallBuilder(app)
    assert builder.build("any", (), {}, {"queue": "videos"}).publication.exchange == "media"
    for options in ({"queue": "nowhere"}, {"queue": "nowhere", "task_type": None}):
        with pytest.raises(QueueNotFound, match="nowhere"):
            builder.build("any", (), {}, options)


def test_what_only_celery_can_publish(new_stock: Callable[..., Stock]) -> None:
    app = new_stock()
    builder = CallBuilder(app)
    with app.connection_for_write() as connection, pytest.raises(NotNative):
        builder.build("any", (), {}, {"connection": connection})
    with pytest.raises(NotNative):
        builder.build("any", (), {}, {"declare": [Queue("q")]})
    other = celery.Celery("other", broker="memory://elsewhere", set_as_current=False)
    with other.producer_or_acquire() as producer, pytest.raises(NotNative):
        builder.build("any", (), {}, {"producer": producer})
    with app.producer_or_acquire() as producer:
        assert builder.build("any", (), {}, {"producer": producer}).publication.queue
    other.close()
    with pytest.raises(NotNative):
        CallBuilder(new_stock(task_protocol=1)).build("any", (), {}, {})


def test_a_message_that_no_queue_would_get_is_refused(new_stock: Callable[..., Stock]) -> None:
    app = new_stock(task_queues=QUEUES)
    builder = CallBuilder(app)
    call = builder.build("any", (), {}, {"queue": "videos", "routing_key": "nothing-like-it"})
    with pytest.raises(QueueNotFound, match="nothing-like-it"):
        natively(app, lambda: [call])
    broadcast = CallBuilder(new_stock(task_queues=[Broadcast("everybody")]))
    call = broadcast.build("any", (), {}, {"queue": "everybody"})
    assert not natively(new_stock(), lambda: [call])[1]


class Stamps(StampingVisitor):  # type: ignore[misc]
    def on_signature(self, sig: Signature, **headers: Any) -> dict[str, Any]:
        return {"customer": "ż", "stamped_headers": ["customer"]}


CANVAS: dict[str, Callable[[Any], Any]] = {
    "signature": lambda task: task.s(1),
    "immutable": lambda task: task.si(1).set(queue="other", priority=3),
    "links": lambda task: task.s(1).on_error(task.s()).set(link=[task.s(2), task.s(3)], countdown=2),
    "chain": lambda task: chain(task.s(1), task.s(2), task.s(3)),
    "group": lambda task: group(task.s(1), task.s(2).set(priority=4, serializer="pickle")),
    "chord": lambda task: chord([task.s(1), task.s(2)], task.s(3)),
    "chain of chords": lambda task: chain(task.s(1), group(task.s(2), task.s(3)), task.s(4)),
    "group of chains": lambda task: group(chain(task.s(1), task.s(2)), chain(task.s(3), task.s(4))),
    "map": lambda task: task.map([1, 2]),
    "starmap": lambda task: task.starmap([(1,), (2,)]),
    "chunks": lambda task: task.chunks([(1,), (2,), (3,)], 2),
    "elsewhere": lambda task: chain(Signature("elsewhere", app=task.app), task.s(1)),
}


@pytest.mark.parametrize(
    "conf", [{}, {"task_routes": {"golden.*": "by-glob"}}, {"task_routes": (by_function,)}]
)
@pytest.mark.parametrize("options", [{}, {"queue": "for-all", "expires": 60}], ids=["", "with options"])
@pytest.mark.parametrize("canvas", CANVAS.values(), ids=CANVAS)
def test_what_canvas_gives_to_send_task(
    new_stock: Callable[..., Stock], canvas: Any, options: dict[str, Any], conf: dict[str, Any]
) -> None:
    app = new_stock(**conf)
    task = app.task(accept_anything, name="golden.task", shared=False)
    compare(app, lambda: canvas(task).apply_async(**options))


@pytest.mark.parametrize("canvas", CANVAS.values(), ids=CANVAS)
def test_what_stamped_canvas_gives_to_send_task(new_stock: Callable[..., Stock], canvas: Any) -> None:
    app = new_stock()
    task = app.task(accept_anything, name="golden.task", shared=False)
    signature = canvas(task)
    signature.stamp(Stamps())
    compare(app, signature.apply_async)


def test_the_record_shows_what_json_cannot_express(new_stock: Callable[..., Stock]) -> None:
    builder = CallBuilder(new_stock())
    call = builder.build("any", (1, {2}, ETA), {"a": b"\xff"}, {"serializer": "pickle"})
    assert json.loads(call.record.args or "")[:2] == [1, [2]]
    assert pickle.loads(call.publication.message.body)[0] == (1, {2}, ETA)
