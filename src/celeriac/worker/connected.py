"""A daemon thread with a kombu connection of its own, kept up across broker outages.

kombu is synchronous; whatever in the worker needs it lives in such a thread and never touches the event loop.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from typing import Any

from celeriac.errors import CeleriacError
from celeriac.worker.compat import bound_open_broker_sockets

__all__ = ["ConnectedThread"]

logger = logging.getLogger("celeriac.worker.control")

#: Seconds before the first, and the longest pause between two, attempts to reach a lost broker.
BACKOFF, MAX_BACKOFF = 1.0, 30.0
#: Seconds for each read while closing a broken connection.
CLOSE_TIMEOUT = 1.0


class _Stopping(CeleriacError):
    """The thread was told to stop while it had no connection."""


class ConnectedThread(ABC):
    """Connects, serves, and connects again until told to stop.

    An outage is logged once when it begins and once when it ends, whatever the number of attempts.

    Args:
        name: what the thread is for, in its name and in the log.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"celeriac {name}", daemon=True)
        self._failures = 0

    def start(self) -> None:
        """Start the thread; returns at once."""
        self._thread.start()

    def request_stop(self) -> None:
        """Ask the thread to end; returns at once, may be called twice."""
        self.stopping.set()

    def join(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for the end. False: it still runs, and dies with the process."""
        if self._thread.ident is not None:
            self._thread.join(max(0.0, timeout))
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @abstractmethod
    def connect(self) -> Any:
        """A new, not yet established, kombu.Connection."""

    @abstractmethod
    def serve(self, connection: Any) -> None:
        """Work until :attr:`stopping` is set, then return; call :meth:`healthy` once things work."""

    def needed(self) -> bool:
        """Block until a connection is needed. False: it never will be."""
        return True

    def healthy(self) -> None:
        """Note that the connection works: ends an outage and resets the backoff."""
        if self._failures:
            self._failures = 0
            logger.info("%s: connected to the broker", self.name)

    def _run(self) -> None:
        while self.needed():
            connection = self.connect()
            try:
                self._establish(connection)
                self.serve(connection)
                connection.close()
                return
            except _Stopping:
                return
            except Exception as exc:  # noqa: BLE001 - whatever a transport raises must not end remote control
                self._report(exc, connection)
                self._discard(connection)
            if self.stopping.wait(min(MAX_BACKOFF, BACKOFF * 2 ** (self._failures - 1))):
                return

    def _establish(self, connection: Any) -> None:
        # One connection object across the attempts, so that kombu goes through the alternates of a failover URL.
        connection.ensure_connection(
            errback=lambda exc, interval: self._report(exc, connection),
            callback=self._give_up_when_stopping,
            interval_start=BACKOFF,
            interval_step=BACKOFF,
            interval_max=MAX_BACKOFF,
        )

    def _give_up_when_stopping(self) -> None:
        if self.stopping.is_set():
            raise _Stopping

    def _report(self, exc: BaseException, connection: Any) -> None:
        self._failures = min(self._failures + 1, 6)
        if self._failures > 1 or self.stopping.is_set():
            return
        # Also those that trying again does not cure, as a wrong password: they say what they are about.
        expected = (*connection.connection_errors, *connection.channel_errors, OSError)
        logger.warning(
            "%s: no connection to the broker at %s, trying again: %r",
            self.name,
            connection.as_uri(),
            exc,
            exc_info=None if isinstance(exc, expected) else exc,
        )

    def _discard(self, connection: Any) -> None:
        # A closing handshake with a broker that went silent would wait for ever.
        bound_open_broker_sockets(connection, CLOSE_TIMEOUT)
        try:
            connection.close()
        except Exception:
            logger.debug("%s: while discarding a connection", self.name, exc_info=True)
