"""Servers that tests need: started here on a free port of the loopback interface, never assumed to run.

A server that is not installed skips the tests that need it, and fails them under ``REQUIRE_SERVICES=1``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """Skip the test for want of a server, or fail it where all servers have to be there."""
    if os.environ.get("REQUIRE_SERVICES") == "1":
        pytest.fail(f"{reason} (REQUIRE_SERVICES=1)", pytrace=False)
    pytest.skip(reason)


@contextlib.contextmanager
def running_redis() -> Iterator[str]:
    """A Redis server of our own, empty and without persistence. Gives its URL, and ends it afterwards."""
    program = shutil.which("redis-server")
    if program is None:
        missing("redis-server is not installed: `make services` installs it")
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        log = Path(folder, "redis.log")
        options = {"port": str(port), "bind": "127.0.0.1", "save": "", "dir": folder, "logfile": str(log)}
        process = subprocess.Popen(
            [program, *(part for key, value in options.items() for part in (f"--{key}", value))]
        )
        try:
            _wait_for_redis(process, port, log)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()
            process.wait(10)


def _wait_for_redis(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as client:
            client.sendall(b"PING\r\n")
            if client.recv(16).startswith(b"+PONG"):
                return
        time.sleep(0.02)
    said = log.read_text(errors="replace") if log.exists() else "nothing"
    raise RuntimeError(f"redis-server does not answer on port {port}. It said:\n{said}")


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The URL of a Redis server that this test run has to itself.

    Import it into a conftest.py to make it known: ``from tests.services import redis_url``.
    """
    with running_redis() as url:
        yield url
