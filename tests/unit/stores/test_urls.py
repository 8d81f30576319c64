"""Which store a result backend's URL means."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from celeriac.errors import ConfigurationError
from celeriac.stores.disabled import DisabledStore
from celeriac.stores.memory import MemoryStore
from celeriac.stores.records import RecordFilter, Transition
from celeriac.stores.sql import SQLStore
from celeriac.stores.urls import store_for


@pytest.mark.parametrize("scheme", ["sqlite", "db+sqlite"])
def test_sqlite(scheme: str) -> None:
    store = store_for(f"{scheme}:///celery.db", expires=7.0)
    assert isinstance(store, SQLStore)
    assert (store.url, store.expires) == ("sqlite:///celery.db", 7.0)


def test_memory() -> None:
    store = store_for("memory://shop", expires=None)
    assert isinstance(store, MemoryStore)
    assert (store.name, store.expires) == ("shop", None)


@pytest.mark.parametrize(
    "url", ["mongodb://localhost/0", "db+postgresql://localhost/x", "rpc://", "nonsense", ""]
)
def test_what_is_not_supported_is_said(url: str) -> None:
    with pytest.raises(ConfigurationError, match="Supported are sqlite:///"):
        store_for(url)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "db+sqlite://"])
def test_sqlite_without_a_file(url: str) -> None:
    with pytest.raises(ConfigurationError, match="names no file"):
        store_for(url)


async def test_disabled_knows_no_task() -> None:
    store = store_for("disabled://")
    assert isinstance(store, DisabledStore)
    await store.open()
    await store.transition([Transition(task_id="a", state="SUCCESS", at=1.0)])
    assert await store.get(["a"]) == {}
    assert (await store.list(RecordFilter())).records == []
    async with store.watch("a") as watch:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watch.changed(), 0.01)
    await store.close()


def test_who_has_no_sqlite_does_not_wait_for_sqlalchemy() -> None:
    program = """
import sys
import celeriac.worker.consumer, celeriac.worker.program
app = celeriac.Celery("shop", broker="redis://127.0.0.1:1/0")
app._connections.make_broker(), app._connections.make_store(), app.backend
assert "sqlalchemy" not in sys.modules
celeriac.Celery("other", broker="sqlite:///celery.db", backend="sqlite:///celery.db")._connections._load()
assert {"celeriac.brokers.sql", "celeriac.stores.sql"} <= sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
