"""A process that enqueues the auditor's tasks as an API does, several at a time, and writes down what was accepted.

``python publisher.py SEED RATE LONGEST``: tasks a second, and the longest that one takes, in seconds; until SIGTERM.
``accepted`` is written when ``enqueue`` has returned; ``refused`` when it has raised.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys

import auditor

from celeriac.errors import BrokerUnavailable, PublishTimeout

#: Calls under way at once.
_CONCURRENCY = 8


async def enqueue_one(chance: random.Random, longest: float) -> None:
    """Enqueue a task of some kind."""
    kind, seconds = chance.random(), chance.random() ** 2 * longest
    countdown, delayed = chance.uniform(0.2, 2.0), 0.8 <= kind < 0.9
    try:
        if kind < 0.7:
            handle = await auditor.work.enqueue(seconds)
        elif kind < 0.8:
            handle = await auditor.work_in_thread.enqueue(seconds)
        elif delayed:
            handle = await auditor.work.using(countdown=countdown).enqueue(seconds)
        else:
            handle = await auditor.work_again.enqueue(seconds, 2, 0.3)
    except (BrokerUnavailable, PublishTimeout) as exc:
        await asyncio.to_thread(auditor.note, "refused", type(exc).__name__)
        await asyncio.sleep(0.1)
    else:
        await asyncio.to_thread(auditor.note, "accepted", handle.id, int(delayed))


async def publish(seed: str, rate: float, longest: float) -> None:
    """Enqueue until told to stop, and finish what was begun."""
    chance, stopping = random.Random(seed), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    places = asyncio.Semaphore(_CONCURRENCY)

    async def enqueue() -> None:
        try:
            await enqueue_one(chance, longest)
        finally:
            places.release()

    async with auditor.celery, asyncio.TaskGroup() as calls:
        print("publishing", flush=True)  # noqa: T201 - who started it waits for this
        while not stopping.is_set():
            await places.acquire()
            calls.create_task(enqueue())
            await asyncio.sleep(chance.expovariate(rate))
    auditor.note("closed", "-")


if __name__ == "__main__":
    asyncio.run(publish(sys.argv[1], float(sys.argv[2]), float(sys.argv[3])))
