"""Kafka servers of our own: each a broker and its controller in one process, and gone with the test.

Debian has no package of Kafka. ``.ci/services`` gathers its files into a cache of the user's, with Maven.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from tests.services import java
from tests.services.ports import ReservedPort
from tests.services.process import ServerProcess
from tests.services.programs import missing, program

__all__ = ["KafkaServer", "running_kafka"]

_LOGGING = """\
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %p %m (%c)%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
"""


def _jars() -> Path:
    """The folder that ``.ci/services`` fills."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "celeriac" / "kafka"


class KafkaServer(ServerProcess):
    """A Kafka broker that a test can treat badly. It keeps topics, messages and offsets over a restart and a kill.

    Args:
        settings: Anything else of ``server.properties``.
    """

    patience = java.PATIENCE

    def __init__(self, *, settings: dict[str, str] | None = None) -> None:
        self._java = program("java")
        if not (_jars() / "complete").exists():
            missing("Kafka is not installed: `make services` installs it where there is Maven (`mvn`)")
        super().__init__()
        self._controller = ReservedPort()
        self._settings = dict(settings or {})
        self._write_configuration()
        self._format()

    @property
    def address(self) -> str:
        """What its own clients call it."""
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """Its URL."""
        return f"confluentkafka://{self.address}"

    def topics(self) -> set[str]:
        """The topics that it has, without its own."""
        return {name for name in self._metadata().topics if not name.startswith("__")}

    def close(self) -> None:
        """Kill it, and remove what it wrote."""
        super().close()
        self._controller.release()

    def _write_configuration(self) -> None:
        controller = f"{self.host}:{self._controller.number}"
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://{controller}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(self.folder / "data"),
            # One machine has one copy, and a group of one member starts at once.
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            # How little a member may ask to be silent for, before others take over what it had.
            "group.min.session.timeout.ms": "1000",
            "num.partitions": "1",
            "num.network.threads": "1",
            "num.io.threads": "2",
            # Tests end it and do not wait; the controller takes it back when it has missed the one that is gone.
            "controlled.shutdown.enable": "false",
            "broker.heartbeat.interval.ms": "100",
            "broker.session.timeout.ms": "1000",
            **self._settings,
        }
        (self.folder / "server.properties").write_text("".join(f"{k}={v}\n" for k, v in settings.items()))
        (self.folder / "log4j2.properties").write_text(_LOGGING)

    def _format(self) -> None:
        cluster = urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
        # A word that begins with a hyphen would be taken for an option.
        words = ["format", f"--cluster-id={cluster}", "--config", str(self.folder / "server.properties")]
        done = subprocess.run(
            self._run("kafka.tools.StorageTool", *words),
            env=java.ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=self.patience,
            check=False,
        )
        if done.returncode != 0:
            super().close()
            raise RuntimeError(f"Kafka could not format its folder:\n{done.stdout}{done.stderr}")

    def _command(self) -> list[str]:
        return self._run("kafka.Kafka", str(self.folder / "server.properties"))

    def _run(self, main: str, *words: str) -> list[str]:
        logging = f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}"
        return [self._java, *java.OPTIONS, logging, "-cp", f"{_jars()}/*", main, *words]

    def _spawn_environment(self) -> dict[str, str]:
        return java.ENVIRONMENT

    def _answer(self) -> bytes:
        # The client knocks for a second; this says at once that nobody is in.
        with socket.create_connection((self.host, self.port), timeout=2):
            pass
        return b"+PONG" if self._metadata().brokers else b""

    def _metadata(self) -> Any:
        client = AdminClient({"bootstrap.servers": self.address, "log_level": 0})
        try:
            return client.list_topics(timeout=1)
        except KafkaException as exc:
            raise OSError(str(exc)) from exc


@contextlib.contextmanager
def running_kafka() -> Iterator[KafkaServer]:
    """A Kafka broker of our own, without a topic."""
    with KafkaServer() as server:
        yield server
