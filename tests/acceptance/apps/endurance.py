"""An app whose tasks end in every way, many times over, for tests of what its processes gather meanwhile."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from celeriac import Celery

celery = Celery("endurance")
celery.conf.update(json.loads(os.environ.get("ENDURANCE_CONF", "{}")))

#: How often each task was started in this process.
started: Counter[str] = Counter()


@celery.task
async def succeed(number: int) -> int:
    started["succeed"] += 1
    return number


@celery.task
def succeed_in_thread(number: int) -> int:
    started["succeed_in_thread"] += 1
    return number


@celery.task
async def fail(number: int) -> None:
    started["fail"] += 1
    raise ValueError(f"number {number}, as told")


@celery.task(bind=True, max_retries=1)
async def retry_once(self: Any, number: int) -> int:
    started["retry_once"] += 1
    if not self.request.retries:
        raise self.retry(countdown=0.1)
    return number


@celery.task
async def be_cancelled(number: int) -> int:
    started["be_cancelled"] += 1
    return number


@celery.task
async def emit(number: int) -> AsyncIterator[int]:
    for value in range(number):
        yield value


@celery.task
async def counts() -> dict[str, int]:
    return dict(started)
