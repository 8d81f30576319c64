"""The pytest plugin, in projects of its own: with pytest-asyncio, with anyio, and where nobody uses it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

QUICKSTART = Path(__file__).parents[3] / "examples" / "quickstart"

APP = """
from celeriac import Celery
from fastapi import FastAPI

celery = Celery("project", broker="redis://127.0.0.1:1/0", set_as_current=False)
app = FastAPI(lifespan=celery.lifespan)

@celery.task
async def divide(x: int, by: int) -> float:
    return x / by

@app.post("/divide/{x}/{by}")
async def post(x: int, by: int) -> str:
    return (await divide.enqueue(x, by)).id
"""


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=100)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "main.py").write_text(APP)
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\naddopts = --strict-markers\n")
    return tmp_path


def test_a_failed_task_is_part_of_the_report_of_a_failed_test(project: Path) -> None:
    (project / "test_it.py").write_text("""
import pytest
from main import app, celery, divide

@pytest.mark.asyncio
@pytest.mark.parametrize("by", [0, 2])
async def test_division(celery_in_memory, by):
    async with celery_in_memory(celery, app=app) as tasks:
        handle = await divide.enqueue(1, by)
        await tasks.idle()
        assert await handle.state() == "SUCCESS"

@pytest.mark.celeriac(mode="held", timeout=0.5)
@pytest.mark.asyncio
async def test_mark(celery_in_memory):
    async with celery_in_memory(celery, mode="inline") as tasks:
        await divide.enqueue(1, 0)
        tasks.assert_enqueued(divide, 1, 0)
        assert await celery.queue_size("celery") == 1
""")
    done = run_pytest(project, "-o", "asyncio_mode=strict", "--show-capture=all")
    assert "1 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    assert "Captured failed tasks call" in done.stdout
    assert "ZeroDivisionError: division by zero" in done.stdout
    assert list(project.glob("*.db")) == []


def test_it_works_with_anyios_plugin_alone(project: Path) -> None:
    (project / "test_it.py").write_text("""
import pytest
from httpx import ASGITransport, AsyncClient
from main import app, celery, divide

pytestmark = pytest.mark.anyio

@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.fixture
async def tasks(celery_in_memory):
    async with celery_in_memory(celery, app=app) as tasks:
        yield tasks

@pytest.fixture
async def client(tasks):
    async with AsyncClient(transport=ASGITransport(app=app), base_url="http://test") as client:
        yield client

@pytest.mark.parametrize("by", [1, 2])
async def test_division(tasks, client, by):
    task_id = (await client.post(f"/divide/6/{by}")).json()
    await tasks.idle()
    assert await celery.handle(task_id).result() == 6 / by
    await divide.using(countdown=60).enqueue(1, by)
    await tasks.clock.advance(minutes=1)
    assert len(tasks.enqueued) == 2
""")
    done = run_pytest(project, "-p", "no:asyncio")
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_a_project_that_does_not_use_it_imports_none_of_it(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("""
import sys

def test_nothing_is_imported():
    assert not {"celery", "celeriac", "fastapi", "kombu"} & set(sys.modules)
""")
    done = run_pytest(tmp_path)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_the_quickstarts_own_tests_pass() -> None:
    before = set(QUICKSTART.iterdir())
    done = run_pytest(QUICKSTART, "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in set(QUICKSTART.iterdir()) - before} <= {"__pycache__"}


def test_they_pass_on_a_machine_with_a_broker_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "CELERY_BROKER_URL", "redis://127.0.0.1:1/0")
    done = run_pytest(QUICKSTART, "-q", "-k", "summarized or synchronous")
    assert done.returncode == 0, done.stdout + done.stderr
