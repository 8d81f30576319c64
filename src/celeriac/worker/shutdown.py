"""When a worker has to end: warm, cold, and with which exit code.

SIGTERM, and a first Ctrl-C, ask for a warm shutdown; a second Ctrl-C, and SIGQUIT, for a cold one, as in
https://docs.celeryq.dev/en/stable/userguide/workers.html#stopping-the-worker. With ``worker_soft_shutdown_timeout``
a cold shutdown is a soft one first: what runs gets so many seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from typing import Any

# billiard reads the variable REMAP_SIGTERM: "SIGQUIT" has SIGTERM ask for a cold shutdown.
from billiard.common import REMAP_SIGTERM
from celery import signals
from celery.platforms import EX_FAILURE, EX_OK
from celery.utils.log import get_logger

from celeriac.worker.announce import announce_here
from celeriac.worker.compat import worker_state

__all__ = ["Shutdown"]

logger = get_logger(__name__)

#: Seconds between two looks at the flags that Celery's own code sets.
_LOOK = 1.0


class Shutdown:
    """Set once, looked at by everything in the worker.

    ``soft_timeout`` is how many seconds running tasks get before a cold shutdown: ``worker_soft_shutdown_timeout``.
    """

    def __init__(self, hostname: str = "", soft_timeout: float = 0.0) -> None:
        self._hostname = hostname
        self._soft_timeout = soft_timeout
        self.warm = asyncio.Event()
        self.cold = asyncio.Event()
        self.exitcode = EX_OK

    def request(self, exitcode: int = EX_OK) -> None:
        """Ask for a warm shutdown."""
        self.exitcode = self.exitcode or exitcode
        self.warm.set()

    def request_cold(self, exitcode: int = EX_FAILURE) -> None:
        """Ask for a cold shutdown: running tasks are stopped and handed back."""
        self.request(exitcode)
        self.cold.set()

    @contextlib.contextmanager
    def on_signals(self) -> Any:
        """Listen to the process's signals while the context lasts."""
        loop = asyncio.get_running_loop()
        on_term = self._on_quit if REMAP_SIGTERM == "SIGQUIT" else self._on_term
        handlers = {signal.SIGTERM: on_term, signal.SIGINT: self._on_int, signal.SIGQUIT: self._on_quit}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    async def watch_celery(self) -> None:
        """Follow what Celery's own code asks for by its module flags."""
        while True:
            await asyncio.sleep(_LOOK)
            for flag, request in (
                (worker_state.should_terminate, self.request_cold),
                (worker_state.should_stop, self.request),
            ):
                if flag is not None and flag is not False:
                    request(int(flag))

    def _on_term(self) -> None:
        self._announce("SIGTERM", "Warm", EX_OK)
        self.request()

    def _on_int(self) -> None:
        if self.warm.is_set():
            self._on_quit()
            return
        _say("worker: Hitting Ctrl+C again will initiate cold shutdown, terminating all running tasks!")
        self._announce("SIGINT", "Warm", EX_FAILURE)
        self.request()

    def _on_quit(self) -> None:
        self._announce("SIGQUIT", "Cold", EX_FAILURE)
        soft, self._soft_timeout = self._soft_timeout, 0.0  # asked for once more, it is cold at once
        if not soft:
            self.request_cold()
            return
        logger.warning("Initiating Soft Shutdown, terminating in %s seconds", soft)
        self.request(EX_FAILURE)
        asyncio.get_running_loop().call_later(soft, self.request_cold)

    def _announce(self, name: str, how: str, exitcode: int) -> None:
        _say(f"worker: {how} shutdown (MainProcess)")
        announce_here(signals.worker_shutting_down, self._hostname, sig=name, how=how, exitcode=exitcode)


def _say(text: str) -> None:
    # Past the redirection of stdout into the log, as Celery's own announcements.
    stream = sys.__stdout__
    if stream is not None:
        stream.write(f"\n{text}\n")
        stream.flush()
