"""A Redis server for one run of the benchmarks: on a free port of the loopback interface, without persistence."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["CLIENT_NAME", "redis_running", "why_no_redis"]

#: Of connections that only look, and are nobody's who is measured.
CLIENT_NAME = "benchmark"

#: Seconds that it gets to answer.
_PATIENCE = 10.0


def why_no_redis() -> str | None:
    """Why no server can be started here, or ``None``."""
    if shutil.which("redis-server") is None:
        return "redis-server is not installed; `make services` installs it"
    return None


@contextlib.contextmanager
def redis_running() -> Iterator[str]:
    """A server for a while. Gives its URL."""
    program = shutil.which("redis-server")
    assert program is not None, "ask why_no_redis first"
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        options = {"port": port, "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": folder}
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        log = Path(folder, "log")
        with log.open("wb") as output:
            process = subprocess.Popen([program, *arguments], stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait_for_answer(process, port, log)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()
            process.wait()


def _wait_for_answer(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as client:
            client.sendall(b"PING\r\n")
            if client.recv(16).startswith(b"+PONG"):
                return
        time.sleep(0.02)
    raise RuntimeError(f"redis-server does not answer on port {port}. It said:\n{log.read_text()}")
