"""A task with a parameter for a file: what it gets, and when the file is gone."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import ANY

import pytest
from celery.exceptions import Ignore, Reject, TimeLimitExceeded
from fastapi import UploadFile
from pydantic import Field
from tests.unit.uploads.conftest import Working, upload

from celeriac import Celery
from celeriac.errors import InvalidArguments, StorageUnavailable, TaskRevoked, UploadGone, UploadTooLarge
from celeriac.stores.records import Transition
from celeriac.testing import in_memory


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir()) if folder.exists() else []


async def until_empty(folder: Path) -> None:
    async with asyncio.timeout(5):
        while names(folder):
            await asyncio.sleep(0.01)


async def test_a_coroutine_reads_what_was_sent_and_the_file_is_deleted(
    celery: Celery, working: Working, folder: Path
) -> None:
    @celery.task
    async def describe(file: UploadFile, title: str) -> list[Any]:
        assert isinstance(file, UploadFile)
        content = await file.read()
        await file.seek(1)
        return [
            content.decode(),
            (await file.read(2)).decode(),
            file.filename,
            file.content_type,
            file.size,
            title,
        ]

    async with working():
        handle = await describe.enqueue(upload(), "a title")
        record = await handle.record()
        assert await handle.result(5) == ["hello", "el", "a.txt", "text/plain", 5, "a title"]
        await until_empty(folder)
    sent = (record.args or [])[0]["__upload__"]
    assert sent == {"key": sent["key"], "filename": "a.txt", "content_type": "text/plain", "size": 5}


async def test_a_function_reads_the_file_itself(celery: Celery, working: Working, folder: Path) -> None:
    @celery.task
    def count(*, file: UploadFile) -> list[Any]:
        return [len(file.file.read()), Path(file.file.name).parent == folder]  # type: ignore[arg-type]

    async with working():
        assert await (await count.enqueue(file=upload(b"x" * 3_000_000))).result(5) == [3_000_000, True]
        await until_empty(folder)


async def test_files_may_be_optional_in_lists_and_annotated(
    celery: Celery, working: Working, folder: Path
) -> None:
    @celery.task
    async def read_all(
        first: UploadFile | None,
        more: list[UploadFile],
        last: Annotated[UploadFile | None, Field(description="The last one")] = None,
    ) -> list[str | None]:
        every = [first, *more, last]
        return [each and (await each.read()).decode() for each in every]

    async with working():
        assert await (await read_all.enqueue(None, [])).result(5) == [None, None]
        handle = await read_all.enqueue(upload(b"1"), [upload(b"2"), upload(b"3")], upload(b"4"))
        assert await handle.result(5) == ["1", "2", "3", "4"]
        await until_empty(folder)


async def test_bytes_come_from_a_file_or_from_the_message(
    celery: Celery, working: Working, folder: Path
) -> None:
    @celery.task
    async def size(content: bytes, more: list[bytes] | None = None) -> list[int]:
        return [len(content), *map(len, more or [])]

    async with working():
        assert await (await size.enqueue(b"\xff\x00plain")).result(5) == [7]
        assert names(folder) == []
        enqueue: Any = size.enqueue
        assert await (await enqueue(upload(b"123"), [upload(b"1"), upload(b"")])).result(5) == [3, 1, 0]
        await until_empty(folder)


async def test_a_retry_finds_the_file_again(celery: Celery, working: Working, folder: Path) -> None:
    seen: list[tuple[bytes, int]] = []

    @celery.task(bind=True, max_retries=5, default_retry_delay=0)
    async def stubborn(self: Any, file: UploadFile) -> None:
        seen.append((await file.read(), len(await asyncio.to_thread(names, folder))))
        if self.request.retries < 2:
            raise self.retry(exc=OSError("not yet"))

    @celery.task(bind=True, max_retries=5, default_retry_delay=0)
    def explicit(self: Any, file: UploadFile) -> str:
        content = file.file.read()
        if self.request.retries < 1:
            raise self.retry(args=(file,), exc=OSError("not yet"))
        return content.decode()

    @celery.task(autoretry_for=(OSError,), max_retries=1, default_retry_delay=0)
    async def hopeless(file: UploadFile) -> None:
        raise OSError((await file.read()).decode())

    async with working():
        await (await stubborn.enqueue(upload())).result(5)
        assert seen == [(b"hello", 1)] * 3
        assert await (await explicit.enqueue(upload())).result(5) == "hello"
        with pytest.raises(OSError, match="hello"):
            await (await hopeless.enqueue(upload())).result(5)
        await until_empty(folder)


async def test_a_failed_task_cannot_be_replayed_without_its_file(
    celery: Celery, working: Working, folder: Path
) -> None:
    @celery.task
    async def fail(file: UploadFile) -> None:
        raise ValueError("no")

    async with working():
        handle = await fail.enqueue(upload())
        with pytest.raises(ValueError, match="no"):
            await handle.result(5)
        await until_empty(folder)
        with pytest.raises(UploadGone, match=r"a\.txt"):
            await celery.replay(await handle.record())
        assert (await handle.record()).state == "FAILURE"


async def test_a_dead_letter_keeps_its_file(celery: Celery, working: Working, folder: Path) -> None:
    rejected = asyncio.Event()

    @celery.task
    async def reject(file: UploadFile) -> str:
        if rejected.is_set():
            return (await file.read()).decode()
        rejected.set()
        raise Reject("not today", requeue=False)

    async with working():
        handle = await reject.enqueue(upload())
        async with asyncio.timeout(5):
            while (await handle.state()) != "FAILURE":
                await asyncio.sleep(0.01)
        assert len(names(folder)) == 1
        await celery.replay(await handle.record())
        assert await handle.result(5) == "hello"
        await until_empty(folder)


async def test_a_task_that_is_ignored_has_had_its_attempt(
    celery: Celery, working: Working, folder: Path
) -> None:
    @celery.task
    async def ignore(file: UploadFile) -> None:
        raise Ignore

    async with working():
        await ignore.enqueue(upload())
        await until_empty(folder)


async def test_a_task_that_replaces_itself_hands_its_file_on(
    celery: Celery, working: Working, folder: Path
) -> None:
    @celery.task
    async def read(file: UploadFile) -> str:
        return (await file.read()).decode()

    @celery.task(bind=True)
    async def delegate(self: Any, file: UploadFile) -> None:
        raise self.replace(read.s(*self.request.args))

    async with working():
        handle: Any = await delegate.enqueue(upload())
        assert await handle.result(5) == "hello"
        await until_empty(folder)


async def test_a_task_that_was_cancelled_while_it_waited_loses_its_file(
    celery: Celery, working: Working, folder: Path
) -> None:
    @celery.task
    async def never(file: UploadFile) -> None:
        raise AssertionError

    async with celery:
        handle = await never.enqueue(upload())
        await handle.cancel()
        assert len(names(folder)) == 1
        async with working():
            await until_empty(folder)
        with pytest.raises(TaskRevoked):
            await handle.result(5)


async def test_a_task_that_is_cancelled_while_it_runs_loses_its_file(
    celery: Celery, working: Working, folder: Path
) -> None:
    begun = asyncio.Event()
    files: list[UploadFile] = []

    @celery.task
    async def wait(file: UploadFile) -> None:
        files.append(file)
        begun.set()
        await asyncio.Event().wait()

    async with working():
        handle = await wait.enqueue(upload())
        await begun.wait()
        await handle.cancel()
        with pytest.raises(TaskRevoked):
            await handle.result(5)
        await until_empty(folder)
        assert files[0].file.closed


async def test_a_task_that_expired_loses_its_file(celery: Celery, working: Working, folder: Path) -> None:
    @celery.task
    async def never(file: UploadFile) -> None:
        raise AssertionError

    async with celery:
        await never.using(expires=-1).enqueue(upload())
        async with working():
            await until_empty(folder)


async def test_what_is_too_large_is_refused_and_leaves_nothing(celery: Celery, folder: Path) -> None:
    celery.conf.celeriac_upload_limit = 10

    @celery.task
    async def take(files: list[UploadFile]) -> None: ...

    silent = upload(b"x" * 11)
    silent.size = 1  # says less than it has
    async with celery:
        for files in ([upload(b"x" * 11)], [upload(b"x" * 6), upload(b"x" * 6)], [silent]):
            with pytest.raises(UploadTooLarge, match="10 bytes"):
                await take.enqueue(files)
        assert names(folder) == []
        assert await celery.queue_size("celery") == 0


async def test_arguments_are_checked_before_anything_is_stored(celery: Celery, folder: Path) -> None:
    @celery.task
    async def take(file: UploadFile, count: int) -> None: ...

    async with celery:
        enqueue: Any = take.enqueue
        with pytest.raises(InvalidArguments, match="count"):
            await enqueue(upload(), "many")
        with pytest.raises(InvalidArguments, match="file"):
            await enqueue("text", 1)
        closed = upload()
        closed.file.close()
        closed.size = 5
        with pytest.raises(InvalidArguments, match="closed"):
            await enqueue(closed, 1)
    assert names(folder) == []


async def test_delay_and_canvas_say_that_they_cannot_send_files(celery: Celery, folder: Path) -> None:
    @celery.task
    async def take(file: UploadFile) -> None: ...

    async with celery:
        for call in (take.delay, lambda file: take.s(file).apply_async()):
            with pytest.raises(InvalidArguments, match="enqueue"):
                call(upload())
        with pytest.raises(InvalidArguments, match="enqueue"):
            await celery.enqueue(take.s(upload()) | take.si(upload()))
    assert names(folder) == []


async def test_many_are_stored_before_all_are_published(
    celery: Celery, working: Working, folder: Path
) -> None:
    @celery.task
    async def read(file: UploadFile) -> str:
        return (await file.read()).decode()

    async with working():
        handles = await celery.enqueue_many([read.s(upload(b"1")), read.s(upload(b"2"))])
        assert [await handle.result(5) for handle in handles] == ["1", "2"]
        assert await (await celery.enqueue(read, (upload(b"3"),))).result(5) == "3"
        await until_empty(folder)


async def test_eager_tasks_get_their_files(celery: Celery, folder: Path) -> None:
    celery.conf.task_always_eager = True

    @celery.task
    async def read(file: UploadFile, more: bytes) -> str:
        return (await file.read() + more).decode()

    async with celery:
        enqueue: Any = read.enqueue
        assert await (await enqueue(upload(b"1"), upload(b"2"))).result() == "12"
    assert names(folder) == []


@pytest.mark.parametrize(
    "key", ["../../etc/passwd", "/etc/passwd", "s3://bucket/x", "a" * 44 + "/../x", "", 7]
)
async def test_a_hostile_reference_is_refused_and_touches_nothing(
    celery: Celery, working: Working, folder: Path, tmp_path: Path, key: Any
) -> None:
    @celery.task(name="unit.read")
    async def read(file: UploadFile) -> str:
        return (await file.read()).decode()

    precious = tmp_path / "precious"
    precious.write_text("secret")
    reference = {"__upload__": {"key": key if key != "" else f"../{precious.name}", "filename": "x"}}
    url = celery.conf.broker_url
    stranger = Celery("stranger", broker=url, backend=url, set_as_current=False)
    async with working(), stranger:
        handle = await stranger.enqueue("unit.read", (reference,))
        with pytest.raises(InvalidArguments):
            await celery.handle(handle.id).result(5)
    assert precious.read_text() == "secret"


async def test_no_task_opens_the_file_of_another(celery: Celery, working: Working, folder: Path) -> None:
    @celery.task
    async def read(file: UploadFile) -> str:
        return (await file.read()).decode()

    async with celery:
        mine = await read.enqueue(upload())
        reference = (await mine.record()).args
        theirs = await celery.enqueue(str(read.name), reference or ())
        async with working():
            with pytest.raises(UploadGone):
                await theirs.result(5)
            assert await mine.result(5) == "hello"


async def test_a_file_of_a_task_is_copied_for_its_child(
    celery: Celery, working: Working, folder: Path
) -> None:
    @celery.task
    async def child(file: UploadFile) -> str:
        return (await file.read()).decode()

    @celery.task
    async def parent(file: UploadFile) -> str:
        return (await child.enqueue(file)).id

    async with working():
        child_id = await (await parent.enqueue(upload())).result(5)
        assert await celery.handle(child_id).result(5) == "hello"
        await until_empty(folder)


async def test_files_are_closed_when_the_attempt_ends(celery: Celery, working: Working) -> None:
    kept: list[UploadFile] = []

    @celery.task
    async def keep(file: UploadFile) -> None:
        kept.append(file)

    async with working():
        await (await keep.enqueue(upload())).result(5)
        assert kept[0].file.closed


async def test_unvalidated_arguments_are_files_all_the_same(celery: Celery, working: Working) -> None:
    celery.conf.celeriac_validate_arguments = False

    @celery.task
    async def read(file: UploadFile) -> str:
        return (await file.read()).decode()

    async with working():
        assert await (await read.enqueue(upload())).result(5) == "hello"


async def test_the_traceback_of_a_failed_task_begins_in_the_task(celery: Celery, working: Working) -> None:
    @celery.task
    async def fail(file: UploadFile) -> None:
        raise ValueError("no")

    async with working():
        handle = await fail.enqueue(upload())
        with pytest.raises(ValueError, match="no"):
            await handle.result(5)
        traceback = (await handle.record()).traceback or ""
    assert "in fail" in traceback
    assert "celeriac" not in traceback.split("test_tasks.py")[0]


async def test_pickle_does_not_take_the_file_itself(celery: Celery, working: Working, folder: Path) -> None:
    celery.conf.accept_content = ["json", "pickle"]

    @celery.task
    async def read(file: UploadFile, more: bytes) -> str:
        return (await file.read() + more).decode()

    async with working():
        assert await (await read.using(serializer="pickle").enqueue(upload(), b"!")).result(5) == "hello!"
        await until_empty(folder)


async def test_a_storage_that_does_not_answer_fails_the_task_and_keeps_the_file(
    celery: Celery, working: Working, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @celery.task
    async def read(file: UploadFile) -> str:
        return (await file.read()).decode()

    async with celery:
        handle = await read.enqueue(upload())
        stored, hidden = folder / names(folder)[0], folder / "hidden"
        stored.rename(hidden)
        stored.mkdir()  # cannot be opened
        async with working():
            with pytest.raises(StorageUnavailable):
                await handle.result(5)
            stored.rmdir()
            hidden.rename(stored)
            await celery.replay(await handle.record())
            assert await handle.result(5) == "hello"
            await until_empty(folder)


async def test_the_hard_limit_counts_while_the_storage_does_not_answer(
    celery: Celery, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()

    def hang(*_: Any) -> None:
        answers.wait(10)

    @celery.task(time_limit=0.2)
    async def read(file: UploadFile) -> None: ...

    monkeypatch.setattr(celery.uploads.place, "open", hang)
    async with working():
        handle = await read.enqueue(upload())
        try:
            with pytest.raises(TimeLimitExceeded):
                await handle.result(5)
        finally:
            answers.set()


async def test_files_wait_in_memory_in_tests(celery: Celery, folder: Path) -> None:
    @celery.task
    async def read(file: UploadFile, title: str) -> str:
        return title + (await file.read()).decode()

    async with in_memory(celery) as tasks:
        handle = await read.enqueue(upload(), "It: ")
        await tasks.idle()
        assert await handle.result() == "It: hello"
        tasks.assert_enqueued(read, ANY, "It: ")
    assert names(folder) == []


async def test_a_worker_that_stops_hands_the_task_back_with_its_file(
    celery: Celery, working: Working, folder: Path
) -> None:
    celery.conf.celeriac_shutdown_grace = 0.0
    begun, may_end = asyncio.Event(), asyncio.Event()

    @celery.task
    async def read(file: UploadFile) -> str:
        begun.set()
        await may_end.wait()
        return (await file.read()).decode()

    async with celery:
        async with working():
            handle = await read.enqueue(upload())
            await begun.wait()
        assert len(names(folder)) == 1
        may_end.set()
        async with working():
            assert await handle.result(5) == "hello"
            await until_empty(folder)


async def test_a_task_whose_end_was_not_acknowledged_loses_its_file_when_it_comes_again(
    celery: Celery, working: Working, folder: Path
) -> None:
    celery.conf.celeriac_lease = 0.5

    @celery.task
    async def read(file: UploadFile) -> str:
        return (await file.read()).decode()

    async with celery:
        handle = await read.enqueue(upload())
        # Somebody has run it, and has died before the broker heard of it.
        await celery.broker.receive(["celery"], 1)
        now = time.time()
        await celery.store.transition([Transition(task_id=handle.id, state="SUCCESS", at=now, result="1")])
        async with working():
            await until_empty(folder)


async def test_what_only_looks_like_a_reference_does_not_hinder_a_replay(
    celery: Celery, working: Working
) -> None:
    @celery.task
    async def take(file: UploadFile | None, more: dict[str, Any]) -> None: ...

    async with working():
        handle = await take.enqueue(None, {"__upload__": "nothing"})
        await handle.result(5)
        await celery.replay(await handle.record())
        await handle.result(5)
