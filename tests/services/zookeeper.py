"""ZooKeeper servers of our own: each on a port and in a folder of its own, and gone with the test."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

from tests.services import java
from tests.services.process import ServerProcess
from tests.services.programs import missing, program

__all__ = ["ZooKeeperServer", "running_zookeeper"]

#: Where Debian's package has it; its manifest names the others that it needs.
_JAR = Path("/usr/share/java/zookeeper.jar")

#: Milliseconds of a tick: a session lives from 2 to 20 of them without a sign of its client.
_TICK = 500


class ZooKeeperServer(ServerProcess):
    """A ZooKeeper server that a test can treat badly. It keeps what it has confirmed over a restart and a kill."""

    patience = java.PATIENCE

    def __init__(self) -> None:
        self._java = program("java")
        if not _JAR.exists():
            missing("ZooKeeper is not installed: `make services` installs it on Debian")
        super().__init__()
        self._write_configuration()

    @property
    def address(self) -> str:
        """What its own clients call it."""
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL of its root."""
        return f"zookeeper://{self.address}/"

    def new_chroot(self) -> str:
        """The URL of a place that nobody has used. kombu makes what is missing on the way there."""
        return f"{self.url}test-{secrets.token_hex(4)}"

    def ask(self, word: str) -> str:
        """Its answer to a four-letter word, such as ``srvr`` or ``cons``."""
        with socket.create_connection((self.host, self.port), timeout=2) as client:
            client.sendall(word.encode())
            return b"".join(iter(lambda: client.recv(4096), b"")).decode()

    def _write_configuration(self) -> None:
        settings = {
            "dataDir": self.folder / "data",
            "clientPort": self.port,
            "clientPortAddress": self.host,
            "tickTime": _TICK,
            "admin.enableServer": "false",
            "4lw.commands.whitelist": "*",
        }
        lines = [f"{name}={value}\n" for name, value in settings.items()]
        (self.folder / "zoo.cfg").write_text("".join(lines))

    def _command(self) -> list[str]:
        main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
        return [
            self._java,
            *java.OPTIONS,
            "-Dzookeeper.jmx.log4j.disable=true",
            "-cp",
            str(_JAR),
            main,
            str(self.folder / "zoo.cfg"),
        ]

    def _spawn_environment(self) -> dict[str, str]:
        return java.ENVIRONMENT

    def _answer(self) -> bytes:
        # Until it serves requests, the answer is another.
        return b"+PONG" if self.ask("srvr").startswith("Zookeeper version") else b""


@contextlib.contextmanager
def running_zookeeper() -> Iterator[ZooKeeperServer]:
    """A ZooKeeper server of our own, empty."""
    with ZooKeeperServer() as server:
        yield server
