"""What a request was travels with its tasks: a real API, our worker and a prefork one, on SQLite and on Redis."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.acceptance.processes import Launcher, Process, free_port, wait_until_up
from tests.services import RedisServer

from celeriac import Celery

pytestmark = pytest.mark.timeout(60)

_SOURCES = Path(__file__).parent / "apps" / "travel"
_PATIENCE = 20.0
_HEADERS = {"X-Request-ID": "r-42", "X-User": "ann", "X-Tenant": "blue"}
SEEN = ["ann", "r-42", "blue"]

#: Where the parts of a canvas run: in our worker, in Celery's prefork pool with our app, or in both by turns.
QUEUES = ["celery", "prefork", "celery,prefork", "prefork,celery"]


@dataclass
class Site:
    """The processes, a client of the API, and one of the store."""

    api: Process
    url: str
    ours: Process
    client: Celery
    http: httpx.AsyncClient

    async def post(self, path: str, **params: Any) -> Any:
        answer = await self.http.post(path, params=params, headers=_HEADERS)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-request-id"] == "r-42"
        return answer.json()


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def processes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("travel")
    for path in _SOURCES.glob("*.py"):
        shutil.copy(path, folder)
    with ExitStack() as stack:
        url = f"sqlite:///{folder}/celery.db"
        if request.param == "redis":
            url = stack.enter_context(RedisServer()).url
        launcher = Launcher()
        stack.callback(launcher.clean_up)
        env = {"CELERY_BROKER_URL": url}
        port = free_port()

        def worker(*options: str) -> Process:
            command = ["celery", "-A", "travel_worker", "worker", "--loglevel=info", *options]
            return launcher.start(command, cwd=folder, env=env)

        ours = worker("-c", "20", "-n", "ours@site")
        prefork = worker("-P", "processes", "-Q", "prefork", "-c", "2", "-n", "prefork@site")
        api = launcher.start(["uvicorn", "travel_api:app", "--port", str(port)], cwd=folder, env=env)
        for process in (ours, prefork):
            process.wait_for_line(r" ready\.")
        wait_until_up(f"http://127.0.0.1:{port}/modules", api)
        yield api, f"http://127.0.0.1:{port}", ours, Celery("client", broker=url, set_as_current=False)


@pytest.fixture
async def site(processes: Any) -> AsyncIterator[Site]:
    api, url, ours, client = processes
    async with client, httpx.AsyncClient(base_url=url, timeout=_PATIENCE) as http:
        yield Site(api, url, ours, client, http)


@pytest.mark.parametrize("queue", ["celery", "prefork"])
@pytest.mark.parametrize("name", ["look", "look_in_thread", "again", "again_by_itself"])
async def test_tasks_and_retries_see_the_request(site: Site, name: str, queue: str) -> None:
    answer = await site.post(f"/task/{name}", queue=queue)
    assert answer["result"] == SEEN
    assert (await site.client.handle(answer["id"]).record()).owner == "ann"


@pytest.mark.parametrize("queue", ["celery", "prefork"])
@pytest.mark.parametrize("name", ["parent", "parent_in_thread"])
async def test_children_inherit(site: Site, name: str, queue: str) -> None:
    for child_id in (await site.post(f"/task/{name}", queue=queue))["result"]:
        child = site.client.handle(child_id)
        assert await child.result(_PATIENCE) == SEEN
        assert (await child.record()).owner == "ann"


@pytest.mark.parametrize("queues", QUEUES)
async def test_canvas_inherits_to_its_end(site: Site, queues: str) -> None:
    ends = {"chain": SEEN, "group": [SEEN] * 2, "chord": [SEEN] * 3, "chord in a chain": [SEEN] * 3}
    for kind, end in ends.items():
        assert await site.post("/canvas", kind=kind, queues=queues) == end, kind


async def test_values_of_a_stream_come_from_the_requests_context(site: Site) -> None:
    answer = await site.post("/task/stream")
    events = [event async for event in site.client.handle(answer["id"]).events()]
    assert [event.data for event in events if event.kind == "value"] == [SEEN]


@pytest.mark.parametrize("queue", ["celery", "prefork"])
async def test_nothing_is_left_for_the_next_task(site: Site, queue: str) -> None:
    await site.post("/task/look", queue=queue)
    for _ in range(3):
        handle = await site.client.enqueue("travel.look", queue=queue)
        assert await handle.result(_PATIENCE) == [None, None, None]
        assert (await handle.record()).owner is None


async def test_the_log_names_the_request(site: Site) -> None:
    mark = site.ours.mark()
    await site.post("/task/look")
    site.ours.wait_for_line(r"^travel\.look for r-42: looking$", after=mark)
    await (await site.client.enqueue("travel.look")).result(_PATIENCE)
    site.ours.wait_for_line(r"^travel\.look for -: looking$", after=mark)


async def test_blocking_publishing_is_named_and_a_thread_may(site: Site) -> None:
    mark = site.api.mark()
    for task_id in [await site.post("/thread"), await site.post("/blocking"), await site.post("/blocking")]:
        assert await site.client.handle(task_id).result(_PATIENCE) == SEEN
        assert (await site.client.handle(task_id).record()).owner == "ann"
    site.api.wait_for_line(r"travel_api\.py:\d+: `look\.delay\(\)` publishes travel\.look", after=mark)
    site.api.wait_for_line(r"Write `await look\.enqueue\(\)` instead", after=mark)
    assert site.api.output.count("on the event loop") == 1


async def test_the_api_needs_none_of_the_workers_modules(site: Site) -> None:
    assert (await site.http.get("/modules")).json() == []
    assert (await site.post("/task/modules"))["result"] == ["travel_tasks", "travel_worker"]
