"""FastAPI's dependencies in real workers: the app's lifespan around them, and their clean-up however a task ends."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.acceptance.processes import Launcher, Process, free_port, wait_until_up
from tests.services import RedisServer

from celeriac import Celery
from celeriac.errors import TaskRevoked
from celeriac.handle import TaskHandle

SOURCE = Path(__file__).parent / "apps" / "depending.py"


class Depending:
    """The app of ``apps/depending.py``, as ``main.py`` in a folder of its own."""

    def __init__(self, folder: Path, launcher: Launcher, url: str | None) -> None:
        folder.mkdir()
        shutil.copy(SOURCE, folder / "main.py")
        self.folder = folder
        self._launcher = launcher
        self._env = {"CELERY_BROKER_URL": url} if url else {}
        self.client = Celery("client", broker=url or f"sqlite:///{folder}/celery.db", set_as_current=False)

    def run(self, *arguments: str, conf: dict[str, Any] | None = None, **env: str) -> Process:
        merged = {**self._env, "DEPENDING_CONF": json.dumps(conf or {}), **env}
        return self._launcher.start(arguments, cwd=self.folder, env=merged)

    def start_worker(self, *options: str, conf: dict[str, Any] | None = None, **env: str) -> Process:
        worker = self.run(
            "celery", "-A", "main.celery", "worker", "--loglevel=info", *options, conf=conf, **env
        )
        worker.wait_for_line(r"ready\.$")
        return worker

    @property
    def audit(self) -> list[str]:
        file = self.folder / "audit.txt"
        return file.read_text().splitlines() if file.exists() else []

    async def until(self, *lines: str) -> None:
        """Wait until the audit has these lines."""
        async with asyncio.timeout(30):
            while not set(lines) <= set(self.audit):
                await asyncio.sleep(0.05)

    async def enqueue(self, name: str, *args: Any, **options: Any) -> TaskHandle[Any]:
        headers = {"X-Name": name}
        return await self.client.enqueue(f"main.{name}", args, headers=headers, **options)


@pytest.fixture(params=["sqlite", "redis"])
def depending(request: pytest.FixtureRequest, tmp_path: Path, launcher: Launcher) -> Depending:
    server: RedisServer | None = None
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
    return Depending(tmp_path / "depending", launcher, server.url if server else None)


async def test_tasks_find_the_apps_state_and_its_lifespan_runs_once_around_them(depending: Depending) -> None:
    worker = await asyncio.to_thread(depending.start_worker)
    async with depending.client:
        for name in ("where", "where_in_a_thread"):
            handle = await depending.enqueue(name)
            assert await handle.result(30) == [f"pool of {worker.pid}", "eu", "client"]
        lines = depending.audit
        assert lines[0] == f"lifespan begins {worker.pid}"
        closed = ["open where", "close client", "commit where", "close where"]
        assert lines[1:5] == closed
        running = await depending.enqueue("wait", 1.0)
        await depending.until("running")
        worker.terminate()
        assert await asyncio.to_thread(worker.wait) == 0
        assert await running.result(10) == "done"
    # After the last task.
    assert depending.audit[-3:] == ["commit wait", "close wait", f"lifespan ends {worker.pid}"]
    assert sum("lifespan" in line for line in depending.audit) == 2


async def test_a_cold_shutdown_rolls_back_and_ends_the_lifespan(depending: Depending) -> None:
    worker = await asyncio.to_thread(depending.start_worker)
    async with depending.client:
        await depending.enqueue("wait", 60.0)
        await depending.until("running")
        worker.signal(signal.SIGQUIT)
        await asyncio.to_thread(worker.wait)
    assert depending.audit[-3:] == [
        "rollback wait HandedBack",
        "close wait",
        f"lifespan ends {worker.pid}",
    ]


async def test_each_retry_has_a_session_of_its_own(depending: Depending) -> None:
    await asyncio.to_thread(depending.start_worker)
    async with depending.client:
        assert await (await depending.enqueue("flaky")).result(30) == "done"
    assert [line for line in depending.audit if "flaky" in line] == [
        *["open flaky", "rollback flaky ConnectionError", "close flaky"] * 2,
        *["open flaky", "commit flaky", "close flaky"],
    ]


@pytest.mark.parametrize("name", ["wait", "wait_in_a_thread"])
async def test_a_task_that_is_stopped_is_rolled_back(depending: Depending, name: str) -> None:
    await asyncio.to_thread(depending.start_worker)
    async with depending.client:
        cancelled = await depending.enqueue(name, 60.0)
        await depending.until("running")
        assert await cancelled.cancel()
        with pytest.raises(TaskRevoked):
            await cancelled.result(10)
        await depending.until(f"rollback {name} TaskRevokedError", f"close {name}")
        for limit, error in (
            ("time_limit", "TimeLimitExceeded"),
            ("soft_time_limit", "SoftTimeLimitExceeded"),
        ):
            limited = await depending.enqueue(name, 60.0, **{limit: 0.5})
            with pytest.raises(Exception, match=r"0\.5|SoftTimeLimit"):
                await limited.result(10)
            await depending.until(f"rollback {name} {error}")


# -- which app, and whether its lifespan runs: the same on every broker ----------------------------------------------


@pytest.fixture
def on_sqlite(tmp_path: Path, launcher: Launcher) -> Depending:
    return Depending(tmp_path / "depending", launcher, None)


async def test_a_lifespan_that_fails_stops_the_worker_with_a_sentence(on_sqlite: Depending) -> None:
    worker = on_sqlite.run("celery", "-A", "main.celery", "worker", BROKEN_LIFESPAN="1")
    line = (
        r"The worker stops: The lifespan of the FastAPI app 'depending' failed at its start: "
        r"ConnectionError: no database at db\.internal\. .*celeriac_worker_lifespan = False"
    )
    worker.wait_for_line(line)
    assert await asyncio.to_thread(worker.wait) == 1


async def test_a_worker_can_be_stopped_while_its_lifespan_begins(on_sqlite: Depending) -> None:
    worker = on_sqlite.run("celery", "-A", "main.celery", "worker", SLOW_LIFESPAN="1")
    async with on_sqlite.client:
        handle = await on_sqlite.enqueue("where")
        await on_sqlite.until("lifespan waits")
        worker.terminate()
        assert await asyncio.to_thread(worker.wait) == 0
        assert await handle.state() == "PENDING"
    assert on_sqlite.audit == ["lifespan waits"]


async def test_a_worker_may_do_without_the_lifespan(on_sqlite: Depending) -> None:
    conf = {"celeriac_worker_lifespan": False}
    await asyncio.to_thread(on_sqlite.start_worker, conf=conf, BROKEN_LIFESPAN="1")
    async with on_sqlite.client:
        handle = await on_sqlite.enqueue("where")
        with pytest.raises(AttributeError, match="pool"):
            await handle.result(10)


async def test_a_worker_inside_the_api_uses_the_lifespan_that_runs(on_sqlite: Depending) -> None:
    port = free_port()
    api = on_sqlite.run("uvicorn", "main:app", "--port", str(port), EMBEDDED="1")
    await asyncio.to_thread(wait_until_up, f"http://127.0.0.1:{port}/docs", api)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        task_id = (await http.post("/where")).json()
        answer = await http.get(f"/tasks/{task_id}/result", params={"wait": 20})
        assert answer.json()["result"] == [f"pool of {api.pid}", "eu", "client"]
    api.terminate()
    await asyncio.to_thread(api.wait)
    assert [line for line in on_sqlite.audit if "lifespan" in line] == [
        f"lifespan begins {api.pid}",
        f"lifespan ends {api.pid}",
    ]


async def test_a_worker_beside_an_app_with_an_embedded_one_starts_no_second(on_sqlite: Depending) -> None:
    worker = await asyncio.to_thread(on_sqlite.start_worker, EMBEDDED="1")
    async with on_sqlite.client:
        assert (await (await on_sqlite.enqueue("where")).result(10))[1] == "eu"
    worker.terminate()
    assert await asyncio.to_thread(worker.wait) == 0
    assert worker.output.count("ready.") == 1
    assert on_sqlite.audit[-1] == f"lifespan ends {worker.pid}"


@pytest.fixture
def apart(on_sqlite: Depending) -> Depending:
    """The Celery app in a module of its own, which does not import the API."""
    (on_sqlite.folder / "main.py").rename(on_sqlite.folder / "all.py")
    (on_sqlite.folder / "tasks.py").write_text(
        "from typing import Annotated\n"
        "from fastapi import Depends, Request\n"
        "from celeriac import Celery\n"
        "celery = Celery('apart', set_as_current=False)\n"
        "async def pool(request: Request) -> str:\n"
        "    return getattr(request.app.state, 'pool', 'none')\n"
        "@celery.task(name='main.where')\n"
        "async def where(pool: Annotated[str, Depends(pool)]) -> str:\n"
        "    return pool\n"
    )
    (on_sqlite.folder / "main.py").write_text(
        "from contextlib import asynccontextmanager\n"
        "from fastapi import FastAPI\n"
        "from tasks import celery\n"
        "@asynccontextmanager\n"
        "async def lifespan(app):\n"
        "    app.state.pool = 'a pool'\n"
        "    yield\n"
        "app = FastAPI(lifespan=celery.lifespan_with(lifespan))\n"
    )
    return on_sqlite


@pytest.mark.parametrize("told", ["not at all", "by a variable", "of what is not there"])
async def test_a_celery_app_in_a_module_of_its_own_has_the_app_that_it_is_told_of(
    apart: Depending, told: str
) -> None:
    path = {"not at all": "", "by a variable": "main:app", "of what is not there": "main:api"}[told]
    worker = apart.run("celery", "-A", "tasks.celery", "worker", "--loglevel=info", CELERIAC_FASTAPI_APP=path)
    if told == "of what is not there":
        worker.wait_for_line(
            r"The worker stops: celeriac_fastapi_app is 'main:api', which cannot be imported"
        )
        assert await asyncio.to_thread(worker.wait) == 1
        return
    async with apart.client:
        result = await (await apart.enqueue("where")).result(30)
    assert result == ("a pool" if path else "none")


async def test_a_worker_with_a_task_that_cannot_run_does_not_start(apart: Depending) -> None:
    tasks = apart.folder / "tasks.py"
    more = (
        "def page(skip: int) -> int: ...\n"
        "@celery.task(name='main.list')\n"
        "async def list_(page: Annotated[int, Depends(page)]) -> int: ...\n"
    )
    await asyncio.to_thread(tasks.write_text, await asyncio.to_thread(tasks.read_text) + more)
    worker = apart.run("celery", "-A", "tasks.celery", "worker")
    worker.wait_for_line(
        r"The worker stops: The task main\.list depends on page\(\), which takes a query parameter \('skip'\)"
    )
    assert await asyncio.to_thread(worker.wait) == 1


async def test_celeriac_dev_tells_its_worker(apart: Depending) -> None:
    port = str(free_port())
    dev = apart.run("celeriac", "dev", "main:app", "--port", port, "--no-reload", "--no-beat")
    dev.wait_for_line(r"ready\.$")
    async with apart.client:
        assert await (await apart.enqueue("where")).result(30) == "a pool"
    dev.terminate()
    await asyncio.to_thread(dev.wait)


async def test_dependencies_work_in_celerys_own_children(on_sqlite: Depending) -> None:
    (on_sqlite.folder / "tasks.py").write_text(
        "from typing import Annotated\n"
        "from fastapi import Depends, Request\n"
        "from main import audit\n"
        "from celeriac import Celery\n"
        "celery = Celery('children', set_as_current=False)\n"
        "async def name(request: Request):\n"
        "    audit('open')\n"
        "    yield request.headers['x-name']\n"
        "    audit('close')\n"
        "@celery.task(name='main.where', bind=True)\n"
        "def where(self, name: Annotated[str, Depends(name)]) -> str:\n"
        "    return name + ' ' + str(self.request.id is not None)\n"
        "@celery.task(name='main.wait')\n"
        "async def wait(name: Annotated[str, Depends(name)]) -> str:\n"
        "    return name\n"
    )
    worker = on_sqlite.run(
        *("celery", "-A", "tasks.celery", "worker", "--loglevel=info", "-P", "processes", "-c", "1"),
    )
    async with on_sqlite.client:
        assert await (await on_sqlite.enqueue("where")).result(60) == "where True"
        assert await (await on_sqlite.enqueue("wait")).result(30) == "wait"
    assert [line for line in on_sqlite.audit if "lifespan" not in line] == ["open", "close"] * 2
    worker.terminate()
    await asyncio.to_thread(worker.wait)
