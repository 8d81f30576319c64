"""RabbitMQ servers of our own: each a node with ports, a name and a folder of its own, and gone with the test."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.services.certificates import Certificates
from tests.services.ports import ReservedPort
from tests.services.process import ServerProcess
from tests.services.programs import missing, program

__all__ = ["RabbitMQServer", "running_rabbitmq"]

#: Seconds that Erlang gets to start, on a machine that does other things as well.
_PATIENCE = 60.0

#: Where Debian has the scripts that run as whoever starts them; the one on the path wants to be root or rabbitmq.
_DEBIAN = Path("/usr/lib/rabbitmq/bin")

#: Who may speak to the node, or to rabbitmqctl, as another Erlang node: this machine alone.
_LOCAL = "-kernel inet_dist_use_interface {127,0,0,1}"


def _script(name: str) -> str:
    found = program(name)
    return str(_DEBIAN / name) if (_DEBIAN / name).exists() else found


class RabbitMQServer(ServerProcess):
    """A RabbitMQ node that a test can treat badly. It keeps what is durable over a restart and a kill.

    Args:
        certificates: Speak TLS, and nothing else, on the port.
        settings: Anything else of ``rabbitmq.conf``.
    """

    patience = _PATIENCE

    def __init__(
        self, *, certificates: Certificates | None = None, settings: dict[str, str] | None = None
    ) -> None:
        self._server, self._control = _script("rabbitmq-server"), _script("rabbitmqctl")
        super().__init__()
        self._others = [ReservedPort() for _ in range(3)]
        self._management, self._distribution, self._mapper = (port.number for port in self._others)
        self.certificates = certificates
        self.node = f"celeriac-{secrets.token_hex(4)}@localhost"
        self._settings = dict(settings or {})
        self._write_configuration()

    @property
    def url(self) -> str:
        """The URL of its first virtual host."""
        return self.url_for("/")

    def url_for(self, vhost: str, user: str = "guest", password: str = "guest") -> str:
        """The URL of a virtual host, for a user."""
        scheme = "amqps" if self.certificates else "amqp"
        return f"{scheme}://{user}:{password}@{self.host}:{self.port}/{quote(vhost, safe='')}"

    def new_vhost(self) -> str:
        """The URL of a virtual host that nobody has used."""
        name = f"test-{secrets.token_hex(4)}"
        self.api("PUT", f"vhosts/{name}", {})
        self.api("PUT", f"permissions/{name}/guest", {"configure": ".*", "write": ".*", "read": ".*"})
        return self.url_for(name)

    def delete_vhost(self, url: str) -> None:
        """Delete the virtual host of a URL, with all that is in it."""
        self.api("DELETE", f"vhosts/{url.rpartition('/')[2]}")

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """The answer of its HTTP API: https://www.rabbitmq.com/docs/management#http-api."""
        login = b64encode(b"guest:guest").decode()
        request = urllib.request.Request(
            f"http://{self.host}:{self._management}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Basic {login}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=20) as response:
            content = response.read()
        return json.loads(content) if content else None

    def command(self, *words: str) -> str:
        """What ``rabbitmqctl`` says."""
        done = subprocess.run(
            [self._control, "-n", self.node, *words],
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=True,
        )
        return done.stdout

    @contextlib.contextmanager
    def out_of_memory(self) -> Iterator[None]:
        """Inside, the server blocks everybody who publishes."""
        self.command("set_vm_memory_high_watermark", "0")
        try:
            yield
        finally:
            self.command("set_vm_memory_high_watermark", "0.8")

    def _write_configuration(self) -> None:
        settings = {
            "loopback_users": "none",
            "listeners.tcp": "none" if self.certificates else None,
            "listeners.tcp.1": None if self.certificates else f"{self.host}:{self.port}",
            "management.tcp.ip": self.host,
            "management.tcp.port": str(self._management),
            "vm_memory_high_watermark.relative": "0.8",
            "disk_free_limit.absolute": "10MB",
            "log.console": "true",
            "log.console.level": "warning",
            **self._tls_settings(),
            **self._settings,
        }
        lines = [f"{name} = {value}\n" for name, value in settings.items() if value is not None]
        (self.folder / "rabbitmq.conf").write_text("".join(lines))
        (self.folder / "plugins").write_text("[rabbitmq_management].\n")

    def _tls_settings(self) -> dict[str, str]:
        if self.certificates is None:
            return {}
        return {
            "listeners.ssl.1": f"{self.host}:{self.port}",
            "ssl_options.cacertfile": str(self.certificates.authority),
            "ssl_options.certfile": str(self.certificates.server),
            "ssl_options.keyfile": str(self.certificates.server_key),
        }

    def _environment(self) -> dict[str, str]:
        folder = str(self.folder)
        return {
            **os.environ,
            "HOME": folder,
            "ERL_EPMD_ADDRESS": self.host,
            "ERL_EPMD_PORT": str(self._mapper),
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_NODE_IP_ADDRESS": self.host,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_BASE": folder,
            "RABBITMQ_MNESIA_BASE": f"{folder}/data",
            "RABBITMQ_LOG_BASE": f"{folder}/logs",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/plugins",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            # Idle schedulers that spin take the machine from the tests.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none {_LOCAL}",
            "RABBITMQ_CTL_ERL_ARGS": _LOCAL,
        }

    def _command(self) -> list[str]:
        return [self._server]

    def _spawn_environment(self) -> dict[str, str]:
        return self._environment()

    def _answer(self) -> bytes:
        for port in (self._management, self.port):
            with socket.create_connection((self.host, port), timeout=2):
                pass
        try:
            self.api("GET", "overview")
        except (urllib.error.URLError, TimeoutError, ConnectionError) as exc:
            raise OSError(str(exc)) from exc
        return b"+PONG"

    def close(self) -> None:
        """Kill the node and its port mapper, and remove what they wrote."""
        super().close()
        _end_mapper(self._mapper)
        for port in self._others:
            port.release()


def _end_mapper(port: int) -> None:
    """End the port mapper that Erlang has left behind: it listens on a port that was ours alone."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            if (process / "comm").read_text().strip() != "epmd":
                continue
            environment = (process / "environ").read_bytes().split(b"\0")
            if f"ERL_EPMD_PORT={port}".encode() in environment:
                os.kill(int(process.name), signal.SIGKILL)


@contextlib.contextmanager
def running_rabbitmq() -> Iterator[RabbitMQServer]:
    """A RabbitMQ server of our own, empty."""
    if not Path("/proc").is_dir():
        missing("RabbitMQ is started for tests on Linux only")
    with RabbitMQServer() as server:
        yield server
