"""Whatever happens to a few tasks, in whatever batches: the stores in memory, SQLite and Redis tell the same."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import redis
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from celeriac.stores.base import Store
from celeriac.stores.records import EventDraft, RecordFilter, TaskRecord, Transition
from celeriac.stores.urls import store_for

_IDS = ["a", "b", "c"]
_STATES = ["PENDING", "STARTED", "RETRY", "FAILURE", "SUCCESS", "REVOKED", "UPLOADING"]

_maybe_text = st.none() | st.sampled_from(["x", "ü", "it's"])
_maybe_json = st.none() | st.sampled_from(['{"n": 1.5}', "[]", "null"])
_error = st.sampled_from(
    [None, '{"exc_type": "E", "exc_message": ["m", 2]}', '{"exc_type": "E", "exc_message": "m"}']
)
_maybe_time = st.none() | st.integers(0, 2**31).map(float)

_transitions = st.builds(
    Transition,
    task_id=st.sampled_from(_IDS),
    state=st.sampled_from(_STATES),
    at=st.integers(0, 2**33).map(lambda quarters: quarters / 4),
    name=_maybe_text,
    queue=_maybe_text,
    args=_maybe_json,
    owner=_maybe_text,
    parent_id=_maybe_text,
    eta=_maybe_time,
    expires=_maybe_time,
    retries=st.none() | st.integers(0, 3),
    worker=_maybe_text,
    result=_maybe_json | _error,
    traceback=_maybe_text,
    children=_maybe_json,
    replay=st.booleans(),
)
_events = st.builds(
    EventDraft,
    st.sampled_from(_IDS),
    st.sampled_from(["progress", "value"]),
    st.sampled_from(['{"current": 1, "total": 2, "note": "n"}', "3"]),
    st.integers(0, 2**31).map(float),
)
_key = st.sampled_from(["k", "ü"])
_steps = st.lists(
    st.tuples(st.just("transition"), st.lists(_transitions, max_size=6))
    | st.tuples(st.just("append_events"), st.lists(_events, max_size=3))
    | st.tuples(st.just("request_cancel"), st.lists(st.sampled_from(_IDS), max_size=2))
    | st.tuples(st.just("forget"), st.lists(st.sampled_from(_IDS), max_size=1))
    | st.tuples(st.just("trim"), st.none())
    | st.tuples(st.just("claim_key"), st.tuples(_key, st.sampled_from(["p", "q"]), st.sampled_from(_IDS)))
    | st.tuples(st.just("release_key"), st.tuples(_key, st.sampled_from(_IDS))),
    max_size=8,
)


_examples = count()  # each has keys of its own


def _comparable(record: TaskRecord) -> TaskRecord:
    # A cancellation happens now, which is not the same now in two stores.
    cancelled = record.cancel_requested_at
    if cancelled is None:
        return record
    finished = None if record.finished_at is None or record.finished_at >= cancelled else record.finished_at
    return replace(record, cancel_requested_at=None, finished_at=finished)


async def _do(store: Store, name: str, argument: Any, example: int) -> Any:
    if name == "trim":
        while await store.trim():
            pass
        return {each.task_id: (each.owner, each.at) for each in (await store.gone(_IDS)).values()}
    if name == "claim_key":
        key, fingerprint, task_id = argument
        claim = await store.claim_key(f"{key}-{example}", fingerprint, task_id, expires=3600)
        return claim.task_id, claim.fingerprint, claim.new
    if name == "release_key":
        key, task_id = argument
        return await store.release_key(f"{key}-{example}", task_id)
    answer = await getattr(store, name)(argument)
    return len(answer) if isinstance(answer, Collection) else answer


async def _observe(store: Store, steps: list[tuple[str, Any]], example: int) -> Any:
    answers = [await _do(store, name, argument, example) for name, argument in steps]
    records = {id_: _comparable(record) for id_, record in (await store.get(_IDS)).items()}
    events = {id_: [(event.kind, event.data) for event in await store.events(id_)] for id_ in _IDS}
    listed = {record.id for record in (await store.list(RecordFilter())).records}
    gone = {each.task_id: each.owner for each in (await store.gone(_IDS)).values()}
    return answers, records, events, listed, set(await store.cancelled(_IDS)), gone


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def stores(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[asyncio.Runner, Store, Store]]:
    """The same two stores for every example: to make a database takes longer than an example."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('machine')}/celery.db"
    else:
        url = request.getfixturevalue("redis_url")
        with redis.Redis.from_url(url) as client:
            client.flushdb()
    with asyncio.Runner() as runner:
        pair = store_for(f"memory://machine-{request.param}"), store_for(url)
        for store in pair:
            runner.run(store.open())
        yield runner, *pair
        for store in pair:
            runner.run(store.close())


@settings(max_examples=100, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink])
@given(steps=_steps)
def test_every_store_agrees_with_the_one_in_memory(
    stores: tuple[asyncio.Runner, Store, Store], steps: list[tuple[str, Any]]
) -> None:
    runner, *pair = stores
    example = next(_examples)
    for store in pair:
        runner.run(store.forget(_IDS))
    in_memory, elsewhere = (runner.run(_observe(store, steps, example)) for store in pair)
    assert elsewhere == in_memory
