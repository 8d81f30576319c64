"""Which server of a group is the primary, from sentinels of which some may be gone or silent."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["find_primary"]


async def find_primary(
    sentinels: Sequence[tuple[str, int]], name: str, min_other_sentinels: int, options: Mapping[str, Any]
) -> tuple[str, int]:
    """Host and port of a group's primary.

    All sentinels are asked at once, and the first that knows is believed: one that is silent costs no time.

    Args:
        sentinels: Their hosts and ports.
        name: The group's name: Celery's transport option ``master_name``.
        min_other_sentinels: How many others a sentinel has to see to be believed; 0 believes each.
        options: For redis-py's connections to the sentinels.

    Raises:
        redis.asyncio.sentinel.MasterNotFoundError: None of them knows; it says why.
    """
    from redis.asyncio.sentinel import MasterNotFoundError
    from redis.exceptions import RedisError

    asked = [asyncio.create_task(_ask(each, name, min_other_sentinels, options)) for each in sentinels]
    complaints: list[str] = []
    try:
        for answer in asyncio.as_completed(asked):
            try:
                return await answer
            except (RedisError, OSError) as exc:
                complaints.append(str(exc))
    finally:
        for task in asked:
            task.cancel()
        await asyncio.wait(asked)
    raise MasterNotFoundError(f"no sentinel names a primary. {' '.join(complaints)}")


async def _ask(
    sentinel: tuple[str, int], name: str, min_other_sentinels: int, options: Mapping[str, Any]
) -> tuple[str, int]:
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.asyncio.sentinel import MasterNotFoundError
    from redis.backoff import NoBackoff

    host, port = sentinel
    client = Redis(host=host, port=port, **{"retry": Retry(NoBackoff(), 0), **options})
    try:
        groups: Any = await client.sentinel_masters()
    finally:
        await client.aclose()
    facts = groups.get(name)
    if facts is None:
        raise MasterNotFoundError(f"The one at {host}:{port} knows no group {name!r}.")
    if not facts["is_master"] or facts["is_sdown"] or facts["is_odown"]:
        raise MasterNotFoundError(f"The one at {host}:{port} sees that the primary is down.")
    if facts["num-other-sentinels"] < min_other_sentinels:
        raise MasterNotFoundError(f"The one at {host}:{port} does not see enough others.")
    return str(facts["ip"]), int(facts["port"])
