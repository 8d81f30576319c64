"""A stock worker with processes of its own, whose result backend is ours."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celery
import pytest

from celeriac.backends.sql import SQLBackend

_APP = """
import celery, os, pathlib
here = pathlib.Path(__file__).parent
app = celery.Celery("stock", broker="filesystem://", backend=f"sqlite:///{here}/celery.db")
app.conf.update(
    broker_transport_options={"data_folder_in": f"{here}/queue", "data_folder_out": f"{here}/queue",
                              "control_folder": f"{here}/control", "polling_interval": 0.02},
    task_track_started=True, result_extended=True,
)
app.backend.get_state("opened before the fork")

@app.task(name="pid")
def pid(number):
    if number == 13:
        raise ValueError("unlucky", number)
    return os.getpid()
"""


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Any]:
    (tmp_path / "queue").mkdir()
    (tmp_path / "control").mkdir()
    (tmp_path / "stock.py").write_text(_APP)
    namespace: dict[str, Any] = {"__file__": str(tmp_path / "stock.py"), "__name__": "stock"}
    exec(compile(_APP, "stock.py", "exec"), namespace)
    options = ["-P", "prefork", "-c", "3", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    log = (tmp_path / "worker.log").open("wb")
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "stock:app", "worker", *options],
        cwd=tmp_path,
        stdout=log,
        stderr=log,
    )
    yield namespace["app"]
    worker.send_signal(signal.SIGTERM)
    worker.wait(30)
    log.close()


def test_processes_share_the_file(app: Any) -> None:
    assert isinstance(app.backend, SQLBackend)
    results = [app.tasks["pid"].delay(number) for number in range(30)]
    pids = [result.get(timeout=60, propagate=False) for result in results]
    assert isinstance(pids[13], ValueError)
    assert pids[13].args == ("unlucky", 13)
    assert len({pid for pid in pids if isinstance(pid, int)}) > 1, "several processes have worked"
    for result in results:
        assert (result.name, result.queue) == ("pid", "celery")
        row = app.backend._row(result.id)
        assert row.attempts.count('"started_at"') == 1
        assert row.worker.startswith("celery@")
    with pytest.raises(celery.exceptions.TimeoutError):
        app.AsyncResult("never").get(timeout=0.05)
