"""Files from a real API to a real worker, which share a folder."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.acceptance.ledger import SOURCES, until
from tests.acceptance.processes import Launcher, Process, free_port, wait_until_up

SIZE = 50_000 * 1024


class Site:
    """API and worker of ``apps/uploads.py`` in a folder of their own."""

    def __init__(self, folder: Path, launcher: Launcher, url: str | None) -> None:
        folder.mkdir()
        shutil.copy(SOURCES / "uploads.py", folder)
        self.folder = folder
        self.uploads = folder / "celery-uploads"
        self._launcher = launcher
        self._env = {"CELERY_BROKER_URL": url} if url else {}
        self.http = httpx.AsyncClient(timeout=60)
        self.file = folder / "video.bin"
        block = bytes(range(256)) * 4
        with self.file.open("wb") as file:
            for _ in range(SIZE // len(block)):
                file.write(block)
        with self.file.open("rb") as file:
            self.digest = hashlib.file_digest(file, "sha256").hexdigest()

    def start_api(self) -> Process:
        address = f"http://127.0.0.1:{(port := free_port())}"
        api = self._start("uvicorn", "uploads:app", "--port", str(port))
        wait_until_up(f"{address}/docs", api)
        self.http.base_url = httpx.URL(address)
        return api

    def start_worker(self) -> Process:
        worker = self._start("celery", "-A", "uploads.celery", "worker", "--loglevel=info", "-c", "4")
        worker.wait_for_line(r" ready\.$")
        return worker

    def _start(self, *arguments: str) -> Process:
        return self._launcher.start(arguments, cwd=self.folder, env=self._env)

    async def post(self, path: str = "/tasks/digests", **fields: Any) -> str:
        with self.file.open("rb") as file:
            answer = await self.http.post(path, files={"file": ("../../video.bin", file)}, data=fields)
        assert answer.status_code == 202, answer.text
        return str(answer.headers["location"])

    async def result(self, location: str) -> Any:
        async with asyncio.timeout(60):
            while (answer := await self.http.get(location, params={"wait": 20})).status_code == 202:
                pass
        assert answer.status_code == 200, answer.text
        return answer.json()["result"]

    def attempts(self) -> list[str]:
        log = self.folder / "attempts.log"
        return log.read_text().splitlines() if log.exists() else []

    def stored(self) -> list[Path]:
        return list(self.uploads.iterdir()) if self.uploads.exists() else []

    async def all_deleted(self) -> None:
        await until(lambda: not self.stored())


@pytest.fixture(params=["sqlite", "redis"])
async def site(request: pytest.FixtureRequest, tmp_path: Path, launcher: Launcher) -> AsyncIterator[Site]:
    url = request.getfixturevalue("redis_server").url if request.param == "redis" else None
    site = Site(tmp_path / "site", launcher, url)
    yield site
    await site.http.aclose()


def start_over_peak(process: Process) -> None:
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def peak(process: Process) -> int:
    """The most memory that the process has had since, in bytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


async def test_a_large_file_survives_its_retries_in_little_memory(site: Site) -> None:
    api = await asyncio.to_thread(site.start_api)
    worker = await asyncio.to_thread(site.start_worker)
    site.file, large = site.folder / "small.bin", site.file
    site.file.write_bytes(b"x" * 2_000_000)  # whatever is imported at the first file is
    await site.result(await site.post())
    await site.result(await site.post("/tasks/thread-digests"))
    site.file = large
    (site.folder / "attempts.log").unlink()
    for process in (api, worker):
        start_over_peak(process)
    before = {process.pid: peak(process) for process in (api, worker)}

    assert await site.result(await site.post(failures="2")) == site.digest
    assert site.attempts().count(f"read {SIZE}") == 3
    await site.all_deleted()
    assert await site.result(await site.post("/tasks/thread-digests")) == site.digest
    await site.all_deleted()

    grown = {process.arguments[1]: peak(process) - before[process.pid] for process in (api, worker)}
    assert max(grown.values()) < 20_000_000, grown


async def test_after_sigkill_another_worker_finds_the_file(site: Site) -> None:
    await asyncio.to_thread(site.start_api)
    worker = await asyncio.to_thread(site.start_worker)
    location = await site.post(gate="gate")
    await until(lambda: len(site.attempts()) == 1)
    worker.kill()
    (site.folder / "gate").touch()
    assert len(site.stored()) == 1

    await asyncio.to_thread(site.start_worker)

    assert await site.result(location) == site.digest
    assert [line.split()[0] for line in site.attempts()] == ["reading", "reading", "read"]
    await site.all_deleted()


async def test_a_task_that_is_cancelled_while_it_waits_loses_its_file(site: Site) -> None:
    await asyncio.to_thread(site.start_api)
    location = await site.post()
    task_id = location.rpartition("/")[2]
    assert len(site.stored()) == 1
    assert (await site.http.post(f"/tasks/{task_id}/cancel")).json()["cancelled"]

    await asyncio.to_thread(site.start_worker)

    await site.all_deleted()
    assert site.attempts() == []
    assert (await site.http.post(f"/tasks/{task_id}/retry")).status_code == 409
