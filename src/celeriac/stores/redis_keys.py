"""Idempotency keys and expired records in Redis."""

from __future__ import annotations

import time
from collections.abc import Iterable

from celeriac.redis.link import Link
from celeriac.stores import redis_layout as layout
from celeriac.stores.keys import KeyClaim
from celeriac.stores.records import Gone
from celeriac.stores.redis_errors import store_errors
from celeriac.stores.rows import micros, moment

__all__ = ["claim_key", "gone", "release_key"]


async def claim_key(
    link: Link, prefix: str, key: str, fingerprint: str, task_id: str, expires: float
) -> KeyClaim:
    """Take a key that is free, for so many seconds; whose it is now."""
    milliseconds = max(1, int(expires * 1000))
    names = map(layout.clean, (key, task_id, fingerprint))
    arguments = [prefix, *names, micros(time.time()), milliseconds]
    with store_errors():
        answer = await link.start(layout.CLAIM_KEY, (), arguments)
    holder, its_fingerprint, at = (text.decode("utf-8", "replace") for text in answer)
    new = (holder, its_fingerprint) == (task_id, fingerprint)
    return KeyClaim(holder, its_fingerprint, moment(int(at)), new)


async def release_key(link: Link, prefix: str, key: str, task_id: str) -> None:
    """Free a key, if it still is this task's."""
    with store_errors():
        await link.start(layout.RELEASE_KEY, (), [prefix, layout.clean(key), layout.clean(task_id)])


async def gone(link: Link, prefix: str, expires: float | None, task_ids: Iterable[str]) -> list[Gone]:
    """What is remembered of those of these tasks whose records have expired."""
    with store_errors():
        found = await link.start(
            layout.GONE, (), layout.gone_arguments(prefix, expires, time.time(), task_ids)
        )
    return [Gone(task_id.decode(), owner.decode() or None, moment(int(at))) for task_id, owner, at in found]
