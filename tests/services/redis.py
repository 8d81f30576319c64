"""Redis servers of our own: each on a port of its own, empty at first, and gone with the test."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode

import redis
from tests.services.certificates import Certificates
from tests.services.process import ServerProcess, ping
from tests.services.programs import program

__all__ = ["RedisServer", "redis_program", "running_redis"]


def redis_program() -> str:
    """The server's program; where it is not installed, the test ends here."""
    return program("redis-server", "valkey-server")


class RedisServer(ServerProcess):
    """A Redis server that a test can treat badly.

    Args:
        append_only: Keep the data over a restart, and over a kill.
        password: What the user ``default`` needs; the URLs have it.
        users: Further users, each with its rules in Redis' own words, such as ``{"ann": "on >secret ~* +@all"}``.
        certificates: Speak TLS, and nothing else, on the port.
        client_certificates: Ask each TLS client for a certificate, too.
        settings: Anything else of ``redis.conf``.
    """

    def __init__(
        self,
        *,
        append_only: bool = False,
        password: str | None = None,
        users: Mapping[str, str] | None = None,
        certificates: Certificates | None = None,
        client_certificates: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._program = redis_program()
        super().__init__()
        self.password = password
        self.certificates = certificates
        self.socket_path = self.folder / "redis.sock"
        self._append_only = append_only
        self._client_certificates = client_certificates
        self._settings = dict(settings or {})
        # The tests' own way in: by the Unix socket, whatever becomes of the other users.
        self._own = f"own-{secrets.token_hex(4)}"
        login = f"#{hashlib.sha256(password.encode()).hexdigest()}" if password else "nopass"
        self._write_users({"default": f"on {login} ~* &* +@all", **(users or {})})

    def url_for(self, username: str = "", password: str | None = None, db: int = 0) -> str:
        """The URL with which this user connects to one of its databases; without a user, the default one."""
        password = self.password if password is None and not username else password
        login = f"{quote(username, '')}:{quote(password, '')}@" if password else ""
        if self.certificates is None:
            return f"redis://{login}{self.host}:{self.port}/{db}"
        query = {"ssl_cert_reqs": "required", "ssl_ca_certs": str(self.certificates.authority)}
        return f"rediss://{login}{self.host}:{self.port}/{db}?{urlencode(query)}"

    @property
    def url(self) -> str:
        """The URL of its first database."""
        return self.url_for()

    @property
    def unix_url(self) -> str:
        """The same by its Unix socket, as redis-py writes it; Celery writes ``redis+socket://`` for ``unix://``."""
        login = f":{quote(self.password, '')}@" if self.password else ""
        return f"unix://{login}{self.socket_path}"

    def admin(self) -> redis.Redis:
        """A client that may do everything, by the Unix socket; the caller closes it."""
        return redis.Redis(
            unix_socket_path=str(self.socket_path),
            username=self._own,
            password="own",
            decode_responses=True,
            socket_timeout=5,
            protocol=2,
        )

    def command(self, *words: str | int) -> Any:
        """Its reply to one command of an administrator."""
        with self.admin() as client:
            return client.execute_command(*words)

    def connections(self) -> list[dict[str, str]]:
        """What ``CLIENT LIST`` says of each connection, those of :meth:`admin` left out."""
        with self.admin() as client:
            return [line for line in client.client_list() if line["user"] != self._own]

    def limit_memory(self, maxmemory: int = 1) -> None:
        """Refuse whatever needs memory while more than this many bytes are in use; 0 lifts the limit."""
        with self.admin() as client:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", maxmemory)

    def follow(self, primary: ServerProcess | None = None) -> None:
        """Become a replica, which is read-only, of another server; of one that is not there, if none is given."""
        host, port = (primary.host, primary.port) if primary else ("127.0.0.1", 1)
        self.command("REPLICAOF", host, port)

    def lead(self) -> None:
        """Be a primary, which can be written to, again."""
        self.command("REPLICAOF", "NO", "ONE")

    def set_user(self, name: str, rules: str) -> None:
        """Create or change a user (``ACL SETUSER``), also for after a restart; ``rules`` in Redis' own words."""
        self.command("ACL", "SETUSER", name, *rules.split())
        self.command("ACL", "SAVE")

    def disconnect(self, kind: str = "normal") -> int:
        """Close all connections of a kind (``normal``, ``pubsub``), as an administrator does. Gives how many."""
        return sum(
            self.command("CLIENT", "KILL", "ID", connection["id"])
            for connection in self.connections()
            if (connection["flags"] == "P") == (kind == "pubsub")
        )

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Restart it with data that it takes its time to load: inside, each command is answered with ``LOADING``."""
        keys = {f"loading:{number}": secrets.token_bytes(1_500) for number in range(1_000)}
        with self.admin() as client:
            client.mset(keys)
            client.save()
        self.stop()
        # Redis looks for commands every 1,024 bytes, so after each of these keys.
        slow = (
            "--key-load-delay",
            "10000",
            "--loading-process-events-interval-bytes",
            "1024",
            "--appendonly",
            "no",
        )
        self.start(*slow, until=b"-LOADING")
        try:
            yield
        finally:
            self.command("CONFIG", "SET", "key-load-delay", 0)
            self.wait_for_answer(b"+PONG")
            (self.folder / "dump.rdb").unlink()
            self.command("UNLINK", *keys)
            self.command("CONFIG", "SET", "appendonly", "yes" if self._append_only else "no")

    def _write_users(self, users: Mapping[str, str]) -> None:
        everyone = {**users, self._own: "on >own ~* &* +@all"}
        lines = [f"user {name} {rules}\n" for name, rules in everyone.items()]
        (self.folder / "users.acl").write_text("".join(lines))

    def _command(self) -> list[str]:
        settings = {
            "bind": self.host,
            "port": "0" if self.certificates else str(self.port),
            "unixsocket": str(self.socket_path),
            "aclfile": str(self.folder / "users.acl"),
            "dir": str(self.folder),
            "save": "",
            "appendonly": "yes" if self._append_only else "no",
            "appendfsync": "no",
            "repl-diskless-sync-delay": "0",
            **self._tls_settings(),
            **self._settings,
        }
        return [self._program, *(part for name, value in settings.items() for part in (f"--{name}", value))]

    def _tls_settings(self) -> dict[str, str]:
        if self.certificates is None:
            return {}
        return {
            "tls-port": str(self.port),
            "tls-cert-file": str(self.certificates.server),
            "tls-key-file": str(self.certificates.server_key),
            "tls-ca-cert-file": str(self.certificates.authority),
            "tls-auth-clients": "yes" if self._client_certificates else "no",
        }

    def _answer(self) -> bytes:
        return ping(self.socket_path, self._own, "own")


@contextlib.contextmanager
def running_redis() -> Iterator[str]:
    """A Redis server of our own, empty and without persistence. Gives its URL, and ends it afterwards."""
    with RedisServer() as server:
        yield server.url
