"""What other workers know when one starts: which tasks were revoked, and the logical clock.

As a stock worker's mingle (https://docs.celeryq.dev/en/stable/reference/celery.worker.consumer.mingle.html), but
beside the work: nothing waits for the answers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from celeriac.worker.compat import worker_state

__all__ = ["mingle"]

logger = logging.getLogger("celeriac.worker.control")

#: ``driver_type`` of the transports that reach other workers.
_TRANSPORTS = frozenset({"amqp", "gcpubsub", "redis", "sqlite"})

#: Seconds to wait for answers.
_PATIENCE = 1.0


def mingle(app: Any, hostname: str, on_revoked: Callable[[Sequence[str]], None]) -> None:
    """Ask the other workers, in a thread; ``on_revoked`` is called there with the ids of each answer."""
    threading.Thread(
        target=_ask, args=(app, hostname, on_revoked), name="celeriac mingle", daemon=True
    ).start()


def _ask(app: Any, hostname: str, on_revoked: Callable[[Sequence[str]], None]) -> None:
    try:
        with app.connection_for_read() as connection:
            if connection.transport.driver_type not in _TRANSPORTS:
                return
            inspect = app.control.inspect(timeout=_PATIENCE, connection=connection)
            answers = inspect.hello(hostname, list(worker_state.revoked)) or {}
    except Exception as exc:  # noqa: BLE001 - a worker does without
        logger.warning("mingle: the other workers could not be asked: %r", exc)
        return
    for node, answer in answers.items():
        if node == hostname or not answer:
            continue
        if answer.get("clock"):
            app.clock.adjust(answer["clock"])
        if answer.get("revoked"):
            logger.info("mingle: %s knows %d revoked tasks", node, len(answer["revoked"]))
            on_revoked(answer["revoked"])
