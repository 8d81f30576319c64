"""Puts back what stock workers took and never acknowledged, as stock workers do for each other.

A stock worker that dies leaves its messages in ``unacked``; whoever finds them there after ``visibility_timeout`` puts
them back. Where all workers are ours, nobody else would.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from celeriac.brokers.redis_keys import Layout, script
from celeriac.brokers.redis_messages import priority_of
from celeriac.errors import BrokerUnavailable

__all__ = ["StockRestorer"]

logger = logging.getLogger("celeriac.redis")

_OVERDUE = script("stock_overdue")
_BINDINGS = script("stock_bindings")
_RESTORE = script("stock_restore")

#: kombu's default.
_VISIBILITY_TIMEOUT = 3600.0

#: Seconds between two sweeps, which cost one small script when there is nothing to do.
_INTERVAL = 30.0

_COUNT = "celeriac-deliveries"


class StockRestorer:
    """Restores messages of dead stock workers.

    Args:
        run: Runs a script with the arguments that all get.
        layout: The keys.
        options: ``visibility_timeout``, in seconds.
    """

    def __init__(
        self, run: Callable[..., asyncio.Future[Any]], layout: Layout, options: Mapping[str, Any]
    ) -> None:
        self._run = run
        self._layout = layout
        self._timeout = float(options.get("visibility_timeout") or _VISIBILITY_TIMEOUT)
        self._interval = min(_INTERVAL, self._timeout / 4)
        self._next = 0.0

    async def sweep_if_time(self) -> None:
        """Look for overdue messages, unless that was done not long ago."""
        now = asyncio.get_running_loop().time()
        if now < self._next:
            return
        self._next = now + self._interval
        found = await self._run(_OVERDUE, self._timeout)
        for tag, held in zip(found[::2], found[1::2], strict=True):
            try:
                await self._restore(tag, held)
            except BrokerUnavailable as exc:
                if not exc.permanent:
                    raise
                logger.error("A message that a stock worker holds stays where it is: %r: %s", tag, exc)
            except Exception:
                # Whoever writes to Redis may have written it, or a binding: it must not keep those that come after it.
                logger.exception(
                    "A message that a stock worker holds cannot be read and stays where it is: %r", tag
                )

    async def _restore(self, tag: bytes, held: bytes) -> None:
        payload, exchange, routing_key = json.loads(held)
        properties = payload["properties"]
        step = self._layout.step_of[priority_of(properties.get("priority"))]
        count = payload.pop(_COUNT, 0)
        payload = {_COUNT: (count if type(count) is int else 0) + 1, **payload}
        for part in (payload.get("headers"), properties.get("delivery_info")):
            if isinstance(part, dict):
                part["redelivered"] = True
        queues = await self._queues(exchange, routing_key)
        if not queues:
            logger.error("Message %r of a stock worker is for no queue, and stays where it is.", tag)
            return
        await self._run(_RESTORE, tag, held, json.dumps(payload), step, *queues)

    async def _queues(self, exchange: str, routing_key: str) -> Sequence[str]:
        """The queues that an exchange of kombu's has for a routing key."""
        if not exchange:
            return [routing_key]
        bindings = await self._run(_BINDINGS, exchange)
        found = []
        for binding in bindings:
            key, pattern, queue = binding.decode().split(self._layout.separator)
            if key == routing_key or (pattern and re.match(pattern, routing_key)):
                found.append(queue)
        return list(dict.fromkeys(found))
