"""Engines: what a URL means, whose turn it is, and one clear sentence for every kind of trouble."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import Connection, Engine

from celeriac.errors import BrokerUnavailable, ConfigurationError
from celeriac.sql import engine as sql_engine
from celeriac.sql.schema import create_tables


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "celery.db"


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    engine = sql_engine.create_engine(f"sqlite:///{path}")
    sql_engine.write(engine, _execute("CREATE TABLE t (a INTEGER)"))
    yield engine
    engine.dispose()


def _execute(statement: str):
    return lambda connection: connection.exec_driver_sql(statement).rowcount


def _count(connection: Connection) -> int:
    return connection.exec_driver_sql("SELECT count(*) FROM t").scalar_one()


def test_a_relative_path_means_the_folder_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    engine = sql_engine.create_engine("sqlite:///celery.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    create_tables(engine)

    assert (tmp_path / "celery.db").exists()
    engine.dispose()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "nonsense", "unknown://host/db"])
def test_a_url_that_cannot_work_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError, match="database URL"):
        sql_engine.create_engine(url)


def test_a_missing_folder(tmp_path: Path) -> None:
    engine = sql_engine.create_engine(f"sqlite:///{tmp_path}/missing/celery.db")

    with pytest.raises(BrokerUnavailable, match=r"missing/celery\.db cannot be used: .*folder exists"):
        create_tables(engine)


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(BrokerUnavailable, match="cannot be opened"):
        create_tables(sql_engine.create_engine(f"sqlite:///{tmp_path}"))


def test_a_file_that_is_no_database(path: Path) -> None:
    path.write_text("This is a letter to my aunt, not a database.\n" * 100)

    with pytest.raises(BrokerUnavailable, match="damaged or no SQLite database") as caught:
        create_tables(sql_engine.create_engine(f"sqlite:///{path}"))

    assert "\n" not in str(caught.value)


def test_a_damaged_database(engine: Engine, path: Path) -> None:
    create_tables(engine)
    engine.dispose()
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)

    with pytest.raises(BrokerUnavailable, match="damaged"):
        sql_engine.write(engine, _execute("INSERT INTO t VALUES (1)"))


@contextlib.contextmanager
def _nobody() -> Iterator[None]:
    """Be nobody where the tests run as root, who may write anywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_without_the_right_to_write() -> None:
    # Not pytest's folder: where that is root's, nobody else may enter it.
    with _nobody(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "celery.db")
        engine = sql_engine.create_engine(f"sqlite:///{path}")
        sql_engine.write(engine, _execute("CREATE TABLE t (a INTEGER)"))
        engine.dispose()
        path.chmod(0o400)
        path.parent.chmod(0o500)
        try:
            with pytest.raises(BrokerUnavailable, match=r"right to write|may write there"):
                sql_engine.write(engine, _execute("INSERT INTO t VALUES (1)"))
        finally:
            path.parent.chmod(0o700)
            engine.dispose()


def test_a_full_disk(engine: Engine) -> None:
    def fill(connection: Connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count = 10")
        connection.exec_driver_sql("INSERT INTO t VALUES (zeroblob(1000000))")

    with pytest.raises(BrokerUnavailable, match="disk is full"):
        sql_engine.write(engine, fill)


def test_a_deleted_file_is_not_written_to_any_more(engine: Engine, path: Path) -> None:
    path.unlink()

    for _ in range(2):
        with pytest.raises(BrokerUnavailable, match="deleted or replaced while in use"):
            sql_engine.write(engine, _execute("INSERT INTO t VALUES (1)"))
    assert not path.exists()


def test_a_replaced_file_is_not_taken_for_the_old_one(engine: Engine, path: Path) -> None:
    path.rename(path.with_suffix(".old"))
    sqlite3.connect(path).close()

    with pytest.raises(BrokerUnavailable, match="deleted or replaced"):
        sql_engine.read(engine, _count)


def test_what_an_operation_raises_goes_through_and_is_rolled_back(engine: Engine) -> None:
    def fail(connection: Connection) -> None:
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        sql_engine.write(engine, fail)

    assert sql_engine.read(engine, _count) == 0


def test_a_wrong_statement_does_not_show_its_parameters(engine: Engine) -> None:
    def fail(connection: Connection) -> None:
        connection.exec_driver_sql("INSERT INTO missing VALUES (?)", ("secret",))

    with pytest.raises(BrokerUnavailable, match="no such table: missing") as caught:
        sql_engine.write(engine, fail)

    assert "secret" not in f"{caught.value} {caught.value.__cause__}"


class _Holder:
    """Another program that holds the write lock."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("BEGIN IMMEDIATE")

    def release(self) -> None:
        self._connection.execute("COMMIT")
        self._connection.close()


def test_a_writer_waits_for_another_program(engine: Engine, path: Path) -> None:
    holder = _Holder(path)
    waiting = threading.Thread(target=sql_engine.write, args=(engine, _execute("INSERT INTO t VALUES (1)")))
    waiting.start()
    waiting.join(0.7)  # longer than one stretch of waiting
    assert waiting.is_alive()
    assert sql_engine.read(engine, _count) == 0  # a reader does not wait

    holder.release()

    waiting.join(10)
    assert not waiting.is_alive()
    assert sql_engine.read(engine, _count) == 1


def test_a_writer_gives_up_with_a_sentence(
    engine: Engine, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_engine, "BUSY_DEADLINE", 0.1)
    holder = _Holder(path)

    with pytest.raises(BrokerUnavailable, match="locked"):
        sql_engine.write(engine, _execute("INSERT INTO t VALUES (1)"))

    holder.release()
    sql_engine.write(engine, _execute("INSERT INTO t VALUES (1)"))


def test_many_threads_write_in_turn(engine: Engine) -> None:
    def increment(connection: Connection) -> None:
        # A read before the write: without the lock from the start, some of these would fail or be lost.
        count = _count(connection)
        connection.exec_driver_sql("INSERT INTO t VALUES (?)", (count,))

    def work() -> None:
        for _ in range(20):
            sql_engine.write(engine, increment)

    threads = [threading.Thread(target=work) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    values = sql_engine.read(engine, lambda c: c.exec_driver_sql("SELECT a FROM t").scalars().all())
    assert sorted(values) == list(range(480))
