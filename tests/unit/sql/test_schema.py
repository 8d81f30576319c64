"""The tables come to exist, whoever was there before, and however many come at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from celery import Celery
from sqlalchemy.engine import Engine

from celeriac.sql import engine as sql_engine
from celeriac.sql import event_log, gone, keys, schema
from celeriac.sql.schema import create_tables
from celeriac.sql.tables import metadata
from celeriac.sql.transitions import Entry, apply_transitions


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = sql_engine.create_engine(f"sqlite:///{tmp_path}/celery.db")
    yield engine
    engine.dispose()


def _assert_complete(engine: Engine) -> None:
    inspector = sa.inspect(engine)
    for table in metadata.sorted_tables:
        columns = {column["name"] for column in inspector.get_columns(table.name)}
        indexes = {index["name"] for index in inspector.get_indexes(table.name)}
        assert columns >= {column.name for column in table.columns}
        assert indexes >= {index.name for index in table.indexes}


def test_creates_everything_once(engine: Engine) -> None:
    create_tables(engine)
    _assert_complete(engine)
    writes = []
    sa.event.listen(engine, "commit", lambda connection: writes.append(connection.get_execution_options()))

    create_tables(engine)

    assert not any(options.get("celeriac_immediate") for options in writes)


def test_adds_what_stock_celery_left_out_and_keeps_its_rows(engine: Engine) -> None:
    stock = Celery("stock", backend=f"db+{engine.url}", broker="memory://")
    stock.backend.store_result("before", {"sum": 3}, "SUCCESS")

    create_tables(engine)

    _assert_complete(engine)
    assert stock.AsyncResult("before").result == {"sum": 3}
    stock.backend.store_result("after", [1], "SUCCESS")
    assert stock.AsyncResult("after").result == [1]


def test_stock_celery_takes_our_tables_for_its_own(engine: Engine) -> None:
    create_tables(engine)
    stock = Celery("stock", backend=f"db+{engine.url}", broker="memory://")
    stock.conf.result_extended = True

    stock.backend.store_result("id", ValueError("no"), "FAILURE", traceback="here")

    assert stock.AsyncResult("id").state == "FAILURE"
    assert stock.AsyncResult("id").traceback == "here"


def test_replaces_a_trigger_that_reads_otherwise(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "AFTER DELETE ON celeriac_binding BEGIN DELETE FROM celeriac_queue WHERE name = '{}'; END"
    create_tables(engine)
    for version in ("a:b", "c"):
        sql = f"CREATE TRIGGER celeriac_test {body.format(version)}"
        monkeypatch.setattr(schema, "triggers", {"celeriac_test": sql})
        create_tables(engine)
        with engine.connect() as connection:
            found = connection.exec_driver_sql(
                "SELECT sql FROM sqlite_master WHERE name = 'celeriac_test'"
            ).scalar()
        assert found == sql


def test_processes_that_start_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/celery.db"
    code = (
        "import sys\n"
        "from celeriac.sql import engine\n"
        "from celeriac.sql.schema import create_tables\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "create_tables(engine.create_engine(sys.argv[1]))\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    results = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        results.append((process.communicate(timeout=60)[1], process.returncode))

    assert results == [("", 0)] * 4
    engine = sql_engine.create_engine(url)
    _assert_complete(engine)
    engine.dispose()


def test_a_database_of_before_gets_the_tables_it_lacks_and_keeps_its_records(engine: Engine) -> None:
    create_tables(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE celeriac_key")
        connection.exec_driver_sql("DROP TABLE celeriac_expired")
        connection.exec_driver_sql("DROP TABLE celeriac_cancelled")
        apply_transitions(connection, [Entry("before", "SUCCESS", 1.0, date_done="1970-01-01 00:00:01")])

    create_tables(engine)

    _assert_complete(engine)
    with engine.begin() as connection:
        assert keys.claim(connection, "key", "print", "task", 1.0, 1.0).task_id == "task"
        assert event_log.trim_records(connection, 10.0, 5.0, 100) == 1
        assert [expired.task_id for expired in gone.fetch(connection, ["before"], 10.0)] == ["before"]
