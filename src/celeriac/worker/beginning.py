"""How a worker comes to what its app needs: it waits for a broker or a store that cannot be had yet."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from celery.utils.log import get_logger

from celeriac.errors import BrokerUnavailable, StoreUnavailable
from celeriac.worker.fetcher import Patience
from celeriac.worker.shutdown import Shutdown

__all__ = ["until_open"]

logger = get_logger(__name__)

_BACKOFF = (0.05, 2.0)


async def until_open(app: Any, shutdown: Shutdown, *, listen_to_signals: bool) -> None:
    """Open broker and store, as often as Celery's ``broker_connection_*`` settings have patience for.

    Returns as well when a shutdown is requested meanwhile. Raises what the last attempt did, or the first one that says
    that waiting would not help.
    """
    patience = Patience.of(app.settings)
    delay, longest = _BACKOFF
    failures = 0
    with contextlib.ExitStack() as stack:
        while not shutdown.warm.is_set():
            try:
                await app._connections.here()
                return
            except (BrokerUnavailable, StoreUnavailable) as exc:
                failures += 1
                if exc.permanent or not patience.allows(failures, started=False):
                    raise
                logger.error("Cannot begin, trying again in %.2f s: %s", delay, exc)
            if listen_to_signals and failures == 1:
                stack.enter_context(shutdown.on_signals())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(shutdown.warm.wait(), delay)
            delay = min(delay * 2, longest)
