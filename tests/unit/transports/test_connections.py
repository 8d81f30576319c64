from __future__ import annotations

import contextlib
import os
import pickle
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import kombu
import psutil
import pytest
from celery import Celery
from kombu.exceptions import OperationalError
from kombu.transport import TRANSPORT_ALIASES
from tests.unit.transports.conftest import Connect, Drain, publish

from celeriac.errors import BrokerUnavailable, ConfigurationError
from celeriac.transports.storage import Order


def test_a_relative_url_means_a_file_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with kombu.Connection("sqlite:///celery.db") as connection:
        publish(connection, "x")
        assert connection.as_uri() == "sqlite:///celery.db"

    assert (tmp_path / "celery.db").exists()


def test_copies_of_a_connection_lead_to_the_same_queue(database_url: str) -> None:
    with kombu.Connection(database_url, transport_options={"visibility_timeout": 7}) as connection:
        publish(connection, "x")
        for copy in (connection.clone(), pickle.loads(pickle.dumps(connection))):
            with copy:
                assert copy.as_uri() == database_url
                assert copy.transport.lease == 7
                assert copy.default_channel.queue_declare("q", passive=True).message_count == 1


def test_a_driver_in_the_url_is_understood(database_url: str) -> None:
    with kombu.Connection(database_url) as connection:
        publish(connection, "x")
    with kombu.Connection(database_url.replace("sqlite:", "sqlite+pysqlite:")) as connection:
        assert connection.default_channel.basic_get("q").payload == "x"
        assert connection.clone().as_uri() == connection.as_uri()


def test_kombu_fails_over_to_the_next_url(tmp_path: Path, database_url: str) -> None:
    missing = f"sqlite:///{tmp_path}/no/such/folder/celery.db"
    with kombu.Connection(f"{missing};{database_url}") as connection:
        connection.ensure_connection(max_retries=3, interval_start=0)

        assert connection.as_uri() == database_url
        with connection.clone() as copy:
            assert copy.default_channel is not None


def test_a_database_without_a_file_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match="memory://"):
        kombu.Connection("sqlite://").connect()


def test_a_damaged_file_says_so_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "celery.db"
    path.write_bytes(b"this is no database" * 500)
    connection = kombu.Connection(f"sqlite:///{path}")

    with pytest.raises(BrokerUnavailable, match="is damaged or no SQLite database") as caught:
        connection.transport.establish_connection()

    assert isinstance(caught.value, connection.recoverable_connection_errors)
    assert "\n" not in str(caught.value)


def test_delay_reports_a_database_that_cannot_be_opened(tmp_path: Path) -> None:
    app = Celery("shop", broker=f"sqlite:///{tmp_path}/no/such/folder/celery.db", set_as_current=False)

    app.conf.broker_connection_timeout = 0.01

    with pytest.raises(OperationalError, match="Check that its folder exists"):
        app.send_task("shop.pay", retry=False)


def test_a_publish_waits_for_its_turn_while_another_process_writes(database_url: str) -> None:
    path = database_url.removeprefix("sqlite:///")
    holder = (
        "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('BEGIN IMMEDIATE'); print(flush=True); time.sleep(0.5); c.execute('ROLLBACK')"
    )
    with kombu.Connection(database_url) as connection:
        publish(connection, "first")
        with subprocess.Popen([sys.executable, "-c", holder, path], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            started = time.monotonic()
            publish(connection, "second")
            assert time.monotonic() - started > 0.2
        assert connection.default_channel.queue_declare("q", passive=True).message_count == 2


def test_the_memory_transport_of_kombu_stays_what_it_is() -> None:
    assert TRANSPORT_ALIASES["memory"] == "kombu.transport.memory:Transport"


def test_an_app_uses_the_queues_in_memory_when_it_says_so() -> None:
    app = Celery("shop", broker="memory://shop", set_as_current=False)
    app.conf.broker_transport = "celeriac-memory"
    app.send_task("shop.pay", queue="payments")

    with kombu.Connection("memory://shop", transport="celeriac-memory") as connection:
        assert connection.as_uri() == "memory://shop"
        assert connection.default_channel.queue_declare("payments", passive=True).message_count == 1
    with kombu.Connection("memory://other", transport="celeriac-memory") as connection:
        assert not connection.transport.storage.exists("payments")


def test_a_closed_connection_holds_no_file_open(database_url: str) -> None:
    connection = kombu.Connection(database_url)
    publish(connection, "x")
    Drain(connection, kombu.Queue("q")).settle_down()
    connection.close()

    assert not [
        file.path
        for file in psutil.Process().open_files()
        if database_url.removeprefix("sqlite:///") in file.path
    ]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_publishes_on_an_inherited_connection(database_url: str) -> None:
    connection = kombu.Connection(database_url)
    publish(connection, "of the parent")
    drain = Drain(connection, kombu.Queue("q"))
    [message] = drain.wait(1)

    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            publish(connection, "of the child")
            connection.close()
            status = 0
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0

    # The child gave back neither the parent's message nor its lease.
    assert [each.payload for each in drain.wait(2)] == ["of the parent", "of the child"]
    message.ack()
    drain.messages[1].ack()
    assert connection.transport.storage.take([Order(("q",), 10, no_ack=False)], 30.0) == [[]]
    connection.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_no_fork_happens_inside_a_transaction(database_url: str) -> None:
    """A child that inherited a locked database could never write to it."""
    with kombu.Connection(database_url) as connection, kombu.Connection(database_url) as other:
        publish(connection, "x")
        stop = threading.Event()

        def publish_on() -> None:
            while not stop.is_set():
                publish(other, "y")

        thread = threading.Thread(target=publish_on)
        thread.start()
        try:
            for _ in range(10):
                child = os.fork()
                if child == 0:
                    status = 1
                    with contextlib.suppress(BaseException):
                        publish(connection, "z", "from-children")
                        status = 0
                    os._exit(status)
                assert os.waitpid(child, 0)[1] == 0
        finally:
            stop.set()
            thread.join()
        assert connection.default_channel.queue_declare("from-children", passive=True).message_count == 10
    check = sqlite3.connect(database_url.removeprefix("sqlite:///"))
    assert check.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    check.close()


def test_a_connection_that_was_closed_opens_again(connect: Connect) -> None:
    connection = connect()
    publish(connection, "x")
    connection.close()

    publish(connection, "y")

    assert connection.default_channel.queue_declare("q", passive=True).message_count == 2
