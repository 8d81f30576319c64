"""Open event streams of one API, and how long an event takes to each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import psutil

from benchmarks.apps.embedded import celery
from benchmarks.probes.loop import run
from benchmarks.processes import peak_memory
from celeriac.stores.records import EventDraft, Transition

__all__ = ["probe"]

#: How many streams are opened at once.
_AT_ONCE = 50

#: Seconds between two batches of events, as a worker with many tasks writes them.
_TICK = 0.02

#: Seconds that a stream may take to open, and the last events to arrive.
_PATIENCE = 60.0

#: Seconds for an API that has just opened its streams to come to rest.
_SETTLE = 2.0


class _Browser(asyncio.Protocol):
    """Reads one stream, and notes how old each value was."""

    def __init__(self, ages: list[float]) -> None:
        self._ages = ages
        self._rest = b""
        self.opened = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        now = time.time()
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b'data: {"at":'):
                self._ages.append(now - float(line[12:-1]))
            elif line.startswith(b"event: state") and not self.opened.done():
                self.opened.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(exc or ConnectionError("The API closed a stream."))


def probe(count: int, port: int, pid: int, store_port: int, rate: int, seconds: float) -> dict[str, float]:
    """Open ``count`` streams of as many tasks at the API on ``port``; then append ``rate`` events a second.

    Bytes of the memory of the API ``pid``: without a stream, with all of them, and at most; its connections to
    ``store_port``; how many events came, of how many; and the median and the 99th percentile of their age in seconds.
    """
    return run(_measure(count, port, pid, store_port, rate, seconds))


async def _measure(
    count: int, port: int, pid: int, store_port: int, rate: int, seconds: float
) -> dict[str, float]:
    api = psutil.Process(pid)
    ages: list[float] = []
    async with celery:
        task_ids = [f"stream-{number}" for number in range(count)]
        now = time.time()
        await celery.store.transition(
            [Transition(task_id=task_id, state="PENDING", at=now) for task_id in task_ids]
        )
        before = api.memory_info().rss
        started = time.perf_counter()
        browsers = await _open(task_ids, port, ages)
        opening = time.perf_counter() - started
        await asyncio.sleep(_SETTLE)
        idle = api.memory_info().rss
        used = _processor(api)
        sent = await _emit(task_ids, rate, seconds)
        await _arrived(ages, sent)
        used = _processor(api) - used
        connections = sum(
            1 for each in api.net_connections("tcp") if each.raddr and each.raddr.port == store_port
        )
        ages.sort()
        measured = {
            "before": before,
            "idle": idle,
            "peak": peak_memory(api),
            "opening": opening,
            "connections": connections,
            "sent": sent,
            "arrived": len(ages),
            "median": ages[len(ages) // 2],
            "late": ages[len(ages) * 99 // 100],
            "used": used / sent,
        }
        for browser in browsers:
            browser.abort()
    return measured


async def _open(task_ids: Sequence[str], port: int, ages: list[float]) -> list[asyncio.WriteTransport]:
    loop = asyncio.get_running_loop()
    transports: list[asyncio.WriteTransport] = []

    async def browse(task_id: str) -> None:
        transport, browser = await loop.create_connection(lambda: _Browser(ages), "127.0.0.1", port)
        transport.write(f"GET /tasks/{task_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        transports.append(transport)
        await asyncio.wait_for(browser.opened, _PATIENCE)

    for start in range(0, len(task_ids), _AT_ONCE):
        await asyncio.gather(*map(browse, task_ids[start : start + _AT_ONCE]))
    return transports


async def _emit(task_ids: Sequence[str], rate: int, seconds: float) -> int:
    """One event after the other to each stream in turn. Returns how many."""
    batch = max(1, round(rate * _TICK))
    sent = 0
    loop = asyncio.get_running_loop()
    started = loop.time()
    while loop.time() - started < seconds:
        now = time.time()
        await celery.store.append_events(
            [
                EventDraft(task_ids[number % len(task_ids)], "value", f'{{"at":{now!r}}}', now)
                for number in range(sent, sent + batch)
            ]
        )
        sent += batch
        # The pace is that of the clock, and not of what each batch takes.
        await asyncio.sleep(max(0.0, started + sent / batch * _TICK - loop.time()))
    return sent


async def _arrived(ages: Sequence[float], sent: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    while len(ages) < sent and time.monotonic() < deadline:  # noqa: ASYNC110 - protocols have no tasks
        await asyncio.sleep(_TICK)


def _processor(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
