"""Deleting what has expired, a bounded piece at a time."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from celeriac import Celery
from celeriac.sql import event_log, records
from celeriac.sql.database import Database
from celeriac.sql.transitions import apply_transitions
from celeriac.stores.entries import to_entries
from celeriac.stores.records import RecordFilter, Transition
from celeriac.stores.sql import SQLStore

OLD = 1_600_000_000.0


async def test_one_call_deletes_a_bounded_number(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celeriac.stores.sql._TRIM_RECORDS", 10)
    store = SQLStore(database_url, expires=60)
    await store.open()
    ended = [Transition(task_id=f"old-{n}", state="SUCCESS", at=OLD + n, result="1") for n in range(25)]
    await store.transition([*ended, Transition(task_id="new", state="SUCCESS", at=time.time())])
    await store.transition([Transition(task_id="waits", state="PENDING", at=OLD)])
    assert [await store.trim() for _ in range(4)] == [10, 10, 5, 0]
    assert {record.id for record in (await store.list(RecordFilter())).records} == {"new", "waits"}
    assert [len(await store.events(task_id)) for task_id in ("new", "waits", "old-1")] == [1, 1, 0]
    await store.close()


async def test_orphans_go_in_windows_and_the_newest_event_stays(database_url: str) -> None:
    database = Database.shared(database_url)
    await database.open()

    def prepare(connection):  # type: ignore[no-untyped-def]
        steps = [Transition(task_id=f"t{n}", state="SUCCESS", at=OLD) for n in range(9)]
        apply_transitions(connection, to_entries(steps))
        records.forget(connection, [f"t{n}" for n in range(9) if n != 4], OLD)

    await database.write(prepare)
    after, windows = 0, 0
    while True:
        position = after
        after = await database.write(
            lambda connection, position=position: event_log.trim_orphans(connection, OLD + 1, position, 4)
        )
        if after == 0:
            break
        windows += 1
    left = await database.read(lambda c: c.exec_driver_sql("SELECT id, kind FROM celeriac_event").all())
    # The one of the record that is left, and the newest, whose id must not be used again.
    assert [kind for _, kind in left] == ["state", "forget"]
    assert windows == 3
    newest = left[-1][0]
    await database.write(
        lambda c: apply_transitions(c, to_entries([Transition(task_id="x", state="SUCCESS", at=OLD)]))
    )
    assert await database.read(event_log.end) == newest + 1
    await database.close()


async def test_traces_go_in_pieces(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celeriac.stores.sql._TRIM_TRACES", 2)
    store = SQLStore(database_url, expires=60)
    await store.open()
    for number in range(5):
        await store.claim_key(f"old-{number}", "print", "task", expires=-1)
    await store.claim_key("new", "print", "task", expires=60)
    database = Database.shared(database_url)
    await database.write(
        lambda c: c.exec_driver_sql(
            "INSERT INTO celeriac_expired VALUES ('a', NULL, 1, 2), ('b', NULL, 1, 3), ('c', NULL, 1, 4e9)"
        )
    )

    async def left() -> list[int]:
        await store.trim()
        return [
            await database.read(
                lambda c, table=table: c.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar()
            )
            for table in ("celeriac_key", "celeriac_expired")
        ]

    assert [await left() for _ in range(3)] == [[4, 1], [2, 1], [1, 1]]
    assert set(await store.gone(["a", "b", "c"])) == {"c"}
    await store.close()


def test_celerys_clean_up_leaves_traces_and_sweeps_up_old_ones(tmp_path: Path) -> None:
    app = Celery(
        "cleaned", backend=f"sqlite:///{tmp_path}/celery.db", broker="memory://", set_as_current=False
    )
    app.conf.result_expires = 60
    app.backend.record_published([Transition(task_id="old", state="REVOKED", at=OLD)])
    with closing(sqlite3.connect(tmp_path / "celery.db")) as database:

        def traces() -> list[list[str]]:
            app.backend.cleanup()
            tables = ("celeriac_expired", "celeriac_cancelled", "celeriac_key")
            return [[row[0] for row in database.execute(f"SELECT * FROM {table}")] for table in tables]

        assert traces() == [["old"], ["old"], []]
        database.execute("UPDATE celeriac_expired SET until = 1")
        database.execute("UPDATE celeriac_cancelled SET until = 1")
        database.execute("INSERT INTO celeriac_key VALUES ('key', 'print', 'task', 1, 2)")
        database.commit()
        assert traces() == [[], [], []]
