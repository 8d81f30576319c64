"""PostgreSQL servers of our own: each on a port and in a folder of its own, and gone with the test."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.services.process import ServerProcess
from tests.services.programs import missing, program

__all__ = ["PostgreSQLServer", "running_postgresql"]

#: Whom Debian's package runs the server as: it refuses to be root.
_USER = "postgres"


class PostgreSQLServer(ServerProcess):
    """A PostgreSQL server that a test can treat badly; it trusts everybody on this machine."""

    patience = 30.0

    def __init__(self) -> None:
        self._postgres = _program("postgres")
        initdb = _program("initdb")
        super().__init__()
        data = self.folder / "data"
        self.folder.chmod(0o755)
        data.mkdir(mode=0o700)
        if os.getuid() == 0:
            shutil.chown(data, _USER)
        done = subprocess.run(
            self._as_user([initdb, "-D", str(data), "-U", "celery", "-A", "trust", "--no-sync"]),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"initdb failed: {done.stderr}")

    @property
    def url(self) -> str:
        """SQLAlchemy's URL of its database."""
        return f"postgresql+psycopg://celery@{self.host}:{self.port}/postgres"

    def _as_user(self, command: list[str]) -> list[str]:
        if os.getuid() != 0:
            return command
        return [
            "setpriv",
            f"--reuid={_USER}",
            f"--regid={pwd.getpwnam(_USER).pw_gid}",
            "--clear-groups",
            *command,
        ]

    def _command(self) -> list[str]:
        return self._as_user(
            [
                self._postgres,
                "-D",
                str(self.folder / "data"),
                "-p",
                str(self.port),
                "-c",
                f"listen_addresses={self.host}",
                "-c",
                "unix_socket_directories=",
            ]
        )

    def _answer(self) -> bytes:
        # The request for TLS is answered with one letter as soon as it takes connections.
        with socket.create_connection((self.host, self.port), timeout=2) as client:
            client.sendall(struct.pack("!ii", 8, 80877103))
            ready = client.recv(1) in (b"S", b"N")
        return b"+PONG" if ready and "ready to accept connections" in self.log else b""

    def stop(self) -> None:
        """End it, and the connections with it."""
        if self._process is not None:
            self._process.send_signal(2)  # SIGINT: without waiting for the clients
        self._wait_for_end()


def _program(name: str) -> str:
    for path in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True):
        return str(path)
    return program(name)


@contextlib.contextmanager
def running_postgresql() -> Iterator[PostgreSQLServer]:
    """A PostgreSQL server of our own, empty."""
    if os.getuid() == 0 and _USER not in {each.pw_name for each in pwd.getpwall()}:
        missing("PostgreSQL does not run as root, and there is no user for it")
    with PostgreSQLServer() as server:
        yield server
