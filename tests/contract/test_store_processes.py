"""Several processes on one SQLite file, or one Redis server: everybody is woken soon, and nothing is lost."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import AsyncIterator

import pytest
import redis

from celeriac.stores.base import Store
from celeriac.stores.records import RecordFilter
from celeriac.stores.urls import store_for

#: Ends the task whose id it reads, and tells when it began to (a clock that all processes of a machine share).
_ENDER = """
import asyncio, sys, time
from celeriac.stores.records import Transition
from celeriac.stores.urls import store_for

async def main(url):
    store = store_for(url)
    await store.open()
    print("open", flush=True)
    for line in sys.stdin:
        begun = time.monotonic()
        await store.transition([Transition(task_id=line.strip(), state="SUCCESS", at=time.time(), result="1")])
        print(begun, flush=True)
    await store.close()

asyncio.run(main(sys.argv[1]))
"""

#: Lives the lives of some tasks, several batches at a time.
_LIVER = """
import asyncio, sys, time
from celeriac.stores.records import EventDraft, Transition
from celeriac.stores.urls import store_for

async def live(store, ids):
    for state in ("PENDING", "STARTED", "SUCCESS"):
        await store.transition([Transition(task_id=id_, state=state, at=time.time(), name=sys.argv[2]) for id_ in ids])
        await store.append_events([EventDraft(id_, "value", "1", time.time()) for id_ in ids])

async def main(url, name):
    store = store_for(url)
    await store.open()
    batches = [[f"{name}-{batch}-{number}" for number in range(5)] for batch in range(12)]
    await asyncio.gather(*(live(store, ids) for ids in batches), *(live(store, ["shared"]) for _ in range(3)))
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


async def _start(script: str, *arguments: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, *arguments, stdin=pipe, stdout=pipe
    )


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, database_url: str) -> str:
    if request.param == "sqlite":
        return database_url
    redis_url: str = request.getfixturevalue("redis_url")
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    return redis_url


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    made = store_for(url)
    await made.open()
    yield made
    await made.close()


async def test_a_watcher_wakes_within_20_ms_of_another_process(store: Store, url: str) -> None:
    ender = await _start(_ENDER, url)
    assert ender.stdin is not None
    assert ender.stdout is not None
    await ender.stdout.readline()
    delays = []
    for number in range(31):
        task_id = f"task-{number}"
        async with store.watch(task_id, until_ready=True) as watch:
            ender.stdin.write(f"{task_id}\n".encode())
            await asyncio.wait_for(watch.changed(), 5)
            woken = time.monotonic()
        delays.append(woken - float(await ender.stdout.readline()))
        assert (await store.get([task_id]))[task_id].result == 1
    ender.stdin.close()
    assert await ender.wait() == 0
    assert statistics.median(delays) < 0.020


async def test_processes_that_write_at_once_lose_nothing(store: Store, url: str) -> None:
    livers = [await _start(_LIVER, url, f"process-{number}") for number in range(3)]
    assert [await liver.wait() for liver in livers] == [0, 0, 0]
    for number in range(3):
        page = await store.list(RecordFilter(name=f"process-{number}", state="SUCCESS"), limit=100)
        assert len([record for record in page.records if record.id != "shared"]) == 60
        for record in page.records:
            if record.id != "shared":
                kinds = [(event.kind, event.data) for event in await store.events(record.id)]
                states = [data["state"] for kind, data in kinds if kind == "state"]
                assert states == ["PENDING", "STARTED", "SUCCESS"]
                assert len(kinds) == 6
    shared = await store.events("shared")
    assert [event.data["state"] for event in shared if event.kind == "state"].count("SUCCESS") == 1
    assert len([event for event in shared if event.kind == "value"]) == 27


#: When told to, asks for one key for many tasks at once, and tells whose it is, and for how many the claim was new.
_CLAIMER = """
import asyncio, sys
from celeriac.stores.urls import store_for

async def main(url, name):
    store = store_for(url)
    await store.open()
    print("open", flush=True)
    sys.stdin.readline()
    claims = await asyncio.gather(
        *(store.claim_key("key", "print", f"{name}-{number}", expires=60) for number in range(10))
    )
    print({claim.task_id for claim in claims}.pop(), sum(claim.new for claim in claims), flush=True)
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_of_fifty_claims_of_a_key_in_five_processes_one_is_new(store: Store, url: str) -> None:
    claimers = [await _start(_CLAIMER, url, f"process-{number}") for number in range(5)]
    for claimer in claimers:
        assert claimer.stdout is not None
        assert await claimer.stdout.readline() == b"open\n"
    for claimer in claimers:
        assert claimer.stdin is not None
        claimer.stdin.write(b"go\n")
    answers = [(await claimer.communicate())[0].split() for claimer in claimers]
    assert sum(int(new) for _, new in answers) == 1
    (holder,) = {task_id.decode() for task_id, _ in answers}
    # They have ended; the key is still whose it was.
    claim = await store.claim_key("key", "print", "another", expires=60)
    assert (claim.task_id, claim.new) == (holder, False)
