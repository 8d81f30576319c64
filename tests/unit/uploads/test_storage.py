"""Contents in a folder and in a file system of fsspec's that is none."""

from __future__ import annotations

import asyncio
import io
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from tests.unit.uploads.conftest import upload

from celeriac import Celery
from celeriac.errors import (
    BrokerUnavailable,
    ConfigurationError,
    PublishTimeout,
    StorageUnavailable,
    UploadGone,
)
from celeriac.stores.records import Transition
from celeriac.uploads.reference import PendingUpload, Reference, new_key
from celeriac.uploads.storage import Storage
from celeriac.worker.uploads import sweep


@pytest.fixture(params=["folder", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "up") if request.param == "folder" else f"memory://{uuid4()}/up")


async def stored(storage: Storage, task_id: str = "t1", content: bytes = b"hello") -> Reference:
    pending = PendingUpload(upload(content))
    await storage.store([(task_id, pending)])
    return pending.reference


async def test_a_content_is_stored_opened_and_deleted(storage: Storage) -> None:
    reference = await stored(storage)
    file = await storage.open("t1", reference)
    assert await asyncio.to_thread(file.read) == b"hello"
    await storage.close([file])
    assert await storage.missing("t1", [reference]) == []
    await storage.discard("t1", [reference])
    await storage.discard("t1", [reference])
    assert await storage.missing("t1", [reference]) == [reference]
    with pytest.raises(UploadGone, match=r"a\.txt.*celeriac_upload_url"):
        await storage.open("t1", reference)


@pytest.mark.parametrize("task_id", ["019a-b", "../../x", "a/b", "ünïcode", ".", "x" * 128])
async def test_a_task_id_may_be_anything(storage: Storage, task_id: str) -> None:
    reference = await stored(storage, task_id)
    assert await storage.read(task_id, reference) == b"hello"
    [(found, _)] = await storage.contents(time.time() + 1)
    assert found == task_id


async def test_an_upload_that_fails_in_the_middle_leaves_nothing(storage: Storage) -> None:
    class Broken(io.BytesIO):
        reads = 0

        def read(self, size: int | None = -1) -> bytes:
            self.reads += 1
            if self.reads > 1:
                raise OSError("the disk is gone")
            return super().read(size)

    broken = upload(b"x" * 3_000_000)
    broken.size, broken.file = 3_000_000, Broken(b"x" * 3_000_000)
    good = PendingUpload(upload())
    with pytest.raises(StorageUnavailable, match="the disk is gone"):
        await storage.store([("t1", good), ("t1", PendingUpload(broken))])
    assert await storage.contents(time.time() + 1) == []


async def test_an_upload_that_nobody_waits_for_leaves_nothing(storage: Storage) -> None:
    loop, reading = asyncio.get_running_loop(), asyncio.Event()

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            loop.call_soon_threadsafe(reading.set)
            time.sleep(0.02)
            return super().read(10)

    slow = upload(b"x" * 10_000)
    slow.file = Slow(b"x" * 10_000)
    task = asyncio.create_task(storage.store([("t1", PendingUpload(slow))]))
    await reading.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5):
        while await storage.contents(time.time() + 1):
            await asyncio.sleep(0.01)
    assert slow.file.tell() < 10_000


async def test_one_file_may_go_to_many_tasks_at_once(storage: Storage) -> None:
    content = b"".join(number.to_bytes(4, "big") for number in range(1_000_000))
    file = upload(content)
    pending = [(f"t{number}", PendingUpload(file)) for number in range(5)]

    await asyncio.gather(*(storage.store([each]) for each in pending))

    for task_id, each in pending:
        assert await storage.read(task_id, each.reference) == content


@pytest.mark.parametrize(("error", "left"), [(BrokerUnavailable, 0), (PublishTimeout, 1)])
async def test_what_was_not_published_is_taken_back(
    storage: Storage, error: type[Exception], left: int
) -> None:
    with pytest.raises(error):
        async with storage.holding([("t1", PendingUpload(upload()))]):
            raise error
    assert len(await storage.contents(time.time() + 1)) == left


async def test_the_sweep_leaves_what_is_still_needed(storage: Storage, celery: Celery) -> None:
    states = {
        "waiting": "PENDING",
        "running": "STARTED",
        "old": "SUCCESS",
        "dead": "FAILURE",
        "stranger": None,
    }
    later = time.time() + 90_000
    async with celery:
        store = celery.store
        for task_id, state in states.items():
            await stored(storage, task_id)
            if state is not None:
                at = later - 10 if task_id == "dead" else time.time()
                await store.transition([Transition(task_id=task_id, state=state, at=at, name="t")])
        assert await sweep(storage, store) == 0
        assert await sweep(storage, store, now=later) == 2
    left = {task_id for task_id, _ in await storage.contents(time.time() + 1)}
    assert left == {"waiting", "running", "dead"}


async def test_where_records_stay_for_ever_the_files_of_dead_letters_do(
    storage: Storage, celery: Celery
) -> None:
    celery.conf.result_expires = None
    async with celery:
        store = celery.store
        for task_id, state in (("done", "SUCCESS"), ("dead", "FAILURE")):
            await stored(storage, task_id)
            await store.transition([Transition(task_id=task_id, state=state, at=time.time(), name="t")])
        assert await sweep(storage, store, now=time.time() + 90_000) == 1
    assert [task_id for task_id, _ in await storage.contents(time.time() + 1)] == ["dead"]


async def test_the_sweep_leaves_what_is_not_ours(tmp_path: Path, celery: Celery) -> None:
    storage = Storage(str(tmp_path / "up"))
    await stored(storage)
    half, other = tmp_path / "up" / f"{new_key()}.t9.part", tmp_path / "up" / "notes.txt"
    half.write_text("half")
    other.write_text("mine")
    async with celery:
        assert await sweep(storage, celery.store, now=time.time() + 90_000) == 2
    assert list((tmp_path / "up").iterdir()) == [other]


async def test_a_storage_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageUnavailable, match="file"):
        await stored(Storage(str(tmp_path / "file")))
    with pytest.raises(ConfigurationError, match="nosuch"):
        await stored(Storage("nosuch://x"))


async def test_without_fsspec_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
    with pytest.raises(ConfigurationError, match=r"celeriac\[uploads\]"):
        await stored(Storage(str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("celeriac_upload_url", ""),
        ("celeriac_upload_url", 7),
        ("celeriac_upload_limit", 0),
        ("celeriac_upload_limit", "much"),
        ("celeriac_upload_storage_options", "key"),
    ],
)
def test_wrong_settings_are_named(name: str, value: Any) -> None:
    app = Celery("unit", broker="memory://", set_as_current=False)
    app.conf[name] = value
    with pytest.raises(ConfigurationError, match=name):
        _ = app.settings


def test_settings_have_defaults() -> None:
    settings = Celery("unit", broker="memory://", set_as_current=False).settings
    assert settings.upload_url == str(Path("celery-uploads").absolute())
    assert (settings.upload_limit, settings.upload_storage_options) == (100_000_000, {})


async def test_nothing_that_keeps_a_content_from_being_deleted_is_raised(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await storage.discard("x" * 300, [Reference(new_key())])  # no such task can have one
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    await Storage("memory://elsewhere").discard("t1", [Reference(new_key())])
    assert "at most 128 bytes" in caplog.text
    assert "Uploads need fsspec" in caplog.text
