"""ElasticMQ servers of our own: each speaks Amazon SQS on a port of its own, and is gone with the test.

Debian has no package of it. ``.ci/services`` gathers its files into a cache of the user's, with Maven. Unlike SQS it
looks at no signature, so whatever access key will do.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.services import java
from tests.services.process import ServerProcess
from tests.services.programs import missing, program

__all__ = ["SQSServer", "running_sqs"]

_CONFIGURATION = """\
include classpath("application.conf")
node-address {{ protocol = http, host = "{host}", port = {port}, context-path = "" }}
rest-sqs {{ enabled = true, bind-hostname = "{host}", bind-port = {port}, sqs-limits = strict }}
rest-stats {{ enabled = false }}
generate-node-address = false
"""

# Written before it is confirmed; the database's default is within half a second.
_STORAGE = """\
messages-storage {{
  enabled = true
  driver-class = "org.h2.Driver"
  uri = "jdbc:h2:{folder}/messages;WRITE_DELAY=0"
  username = ""
  password = ""
  prune-data-on-init = false
}}
"""


def _jars() -> Path:
    """The folder that ``.ci/services`` fills."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "celeriac" / "elasticmq"


class SQSServer(ServerProcess):
    """A server that speaks SQS, and that a test can treat badly.

    Args:
        durable: Whether it keeps queues and messages over a restart and a kill, as SQS does. Without it comes back
            empty, and is fifty times faster.
    """

    patience = java.PATIENCE

    def __init__(self, *, durable: bool = False) -> None:
        self._java = program("java")
        if not (_jars() / "complete").exists():
            missing("ElasticMQ is not installed: `make services` installs it where there is Maven (`mvn`)")
        super().__init__()
        text = _CONFIGURATION + (_STORAGE if durable else "")
        (self.folder / "server.conf").write_text(
            text.format(host=self.host, port=self.port, folder=self.folder)
        )

    @property
    def url(self) -> str:
        """Its URL as Celery has it."""
        return self.url_at(self.port)

    def url_at(self, port: int) -> str:
        """Its URL by way of another port, such as a proxy's."""
        return f"sqs://key:secret@{self.host}:{port}"

    @property
    def endpoint(self) -> str:
        """Its URL as Amazon's own client has it."""
        return f"http://{self.host}:{self.port}"

    def new_options(self, **more: Any) -> dict[str, Any]:
        """``broker_transport_options`` for a place that nobody has used. Idle clients ask once a second."""
        return {
            "region": "us-east-1",
            "is_secure": False,
            "wait_time_seconds": 1,
            "queue_name_prefix": f"test-{secrets.token_hex(4)}-",
            **more,
        }

    def _command(self) -> list[str]:
        main = "org.elasticmq.server.Main"
        configuration = f"-Dconfig.file={self.folder / 'server.conf'}"
        return [self._java, *java.OPTIONS, configuration, "-cp", f"{_jars()}/*", main]

    def _spawn_environment(self) -> dict[str, str]:
        return java.ENVIRONMENT

    def _answer(self) -> bytes:
        with urllib.request.urlopen(f"{self.endpoint}/?Action=ListQueues", timeout=2):
            return b"+PONG"


@contextlib.contextmanager
def running_sqs(*, durable: bool = False) -> Iterator[SQSServer]:
    """A server of our own, without a queue."""
    with SQSServer(durable=durable) as server:
        yield server
