"""What a worker does beside its tasks: it hears of cancellations, and deletes expired records."""

from __future__ import annotations

import asyncio

from celery.exceptions import TaskRevokedError
from celery.utils.log import get_logger

from celeriac.errors import StoreUnavailable
from celeriac.stores.base import Store
from celeriac.worker.held import Held

__all__ = ["follow_cancellations", "trim"]

logger = get_logger(__name__)


async def follow_cancellations(store: Store, held: Held) -> None:
    """Stop what is cancelled, for ever; through outages of the store, too."""
    while True:
        try:
            async with store.cancellations() as feed:
                # What was cancelled while nobody listened is marked in the store. After the feed has begun, so that
                # nothing falls in between.
                await _halt_marked(store, held)
                while True:
                    held.halt(set(await feed.next()), TaskRevokedError("cancelled"))
        except StoreUnavailable as exc:
            logger.error("Cannot hear of cancellations, trying again in 1 s: %s", exc)
        except Exception:
            logger.exception("Cannot hear of cancellations, trying again in 1 s")
        await asyncio.sleep(1)


async def _halt_marked(store: Store, held: Held) -> None:
    ids = [execution.id for execution in held]
    if ids:
        held.halt(set(await store.cancelled(ids)), TaskRevokedError("cancelled"))


async def trim(store: Store) -> None:
    """Delete expired records, a little at a time."""
    while True:
        try:
            removed = await store.trim()
        except StoreUnavailable:
            removed = 0  # who writes records says it
        await asyncio.sleep(1 if removed else 60)
