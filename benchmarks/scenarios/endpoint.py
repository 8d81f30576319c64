"""What an enqueue costs the endpoint that it is in: the same endpoint with and without it, in turn, under uvicorn."""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.figures import Figure, Skipped, at_least, at_most
from benchmarks.load import Load, put_load, why_no_load
from benchmarks.processes import Command, Failed, Process, running, wait_until
from benchmarks.report import Row
from benchmarks.scale import Scale
from benchmarks.systems import EMBEDDED, NATIVE, STOCK, Place, System

__all__ = ["measure"]

_NAME = "endpoint"
_CLIENTS = 64
_WITHOUT = "without"

#: Seconds for the first requests, which are not counted.
_WARM_UP = 1.0

_START = 30.0

#: Of the requests a second without the enqueue, and seconds more of the slowest hundredth.
_SHARE = at_least(0.8)
_LATER = at_most(5.0)


@dataclass(frozen=True, slots=True)
class _Contender:
    """A system, its API, and the endpoints that enqueue."""

    system: System
    app: str
    routes: tuple[str, ...]
    #: Whether it is held against the bars.
    barred: bool = True
    #: Of Python's collector: how many more objects than were freed make it look; None leaves it to Python.
    gc_threshold: int | None = None

    @property
    def name(self) -> str:
        return (
            self.system.name
            if self.gc_threshold is None
            else f"{self.system.name}, gc.set_threshold({self.gc_threshold:_})"
        )

    @property
    def env(self) -> dict[str, str]:
        return {} if self.gc_threshold is None else {"BENCHMARK_GC_THRESHOLD": str(self.gc_threshold)}

    def reason(self) -> str | None:
        """Why it cannot be measured here, or ``None``."""
        return why_no_load() or self.system.unavailable()


_OURS = "benchmarks.apps.endpoint:app"
_STOCK = "benchmarks.apps.stock_endpoint:app"

_CONTENDERS = (
    _Contender(NATIVE, _OURS, ("with",)),
    _Contender(EMBEDDED, _OURS, ("with",)),
    _Contender(NATIVE, _OURS, ("with",), barred=False, gc_threshold=10_000),
    _Contender(EMBEDDED, _OURS, ("with",), barred=False, gc_threshold=10_000),
    _Contender(STOCK, _STOCK, ("with-def", "with-async-def"), barred=False),
)

_TOLD = {
    _WITHOUT: "endpoint without enqueue",
    "with": "endpoint with enqueue",
    "with-def": "def endpoint with .delay()",
    "with-async-def": "async def endpoint with .delay()",
}

_Loads = dict[str, list[Load]]


def measure(scale: Scale) -> Iterator[Row]:
    """Requests a second and how long they took, of each endpoint, with no worker there."""
    present = [each for each in _CONTENDERS if each.reason() is None]
    loads: dict[_Contender, _Loads] = {each: defaultdict(list) for each in present}
    for number in range(scale.endpoint_rounds):
        for contender in present:
            _round(contender, loads[contender], number, scale.endpoint_seconds)
    for contender in _CONTENDERS:
        if contender in loads:
            yield from _rows(contender, loads[contender])
        else:
            yield Skipped(_NAME, contender.name, str(contender.reason()))


def _round(contender: _Contender, loads: _Loads, number: int, seconds: float) -> None:
    """Each endpoint of one system once, in an API and a place that nobody has used before."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    api = Command(("uvicorn", contender.app, "--port", str(port), "--log-level", "warning"))
    routes = [_WITHOUT, *contender.routes]
    with contender.system.place() as place, running(api, {**place.env, **contender.env}) as web:
        wait_until(web, lambda: _accepted(url) == 0, timeout=_START)
        for route in routes:
            put_load(f"{url}/{route}", clients=_CLIENTS, seconds=_WARM_UP)
        # Whoever comes first finds the shorter queue, and whoever comes last the warmer machine.
        for route in routes if number % 2 else reversed(routes):
            loads[route].append(_load(web, place, url, route, seconds))


def _load(web: Process, place: Place, url: str, route: str, seconds: float) -> Load:
    before = _settled(web, url, place)
    load = put_load(f"{url}/{route}", clients=_CLIENTS, seconds=seconds)
    enqueued = _settled(web, url, place) - before
    # The clients hang up at the end: whatever was sent then is enqueued, and nobody reads the answer.
    expected = 0 if route == _WITHOUT else load.requests
    if not expected <= enqueued <= expected + (_CLIENTS if expected else 0):
        raise Failed(f"{load.requests} requests at {route} were answered, and {enqueued} tasks enqueued.")
    return load


def _settled(web: Process, url: str, place: Place) -> int:
    """How many requests the API has accepted in all; waits until there are as many messages and records."""
    accepted = -1

    def all_there() -> bool:
        nonlocal accepted
        last, accepted = accepted, _accepted(url) or 0
        return last == accepted and place.enqueued() == (accepted, accepted)

    try:
        wait_until(web, all_there, timeout=10)
    except Failed:
        messages, records = place.enqueued()
        raise Failed(f"{accepted} accepted, but {messages} messages and {records} records.") from None
    return accepted


def _accepted(url: str) -> int | None:
    try:
        with urllib.request.urlopen(f"{url}/accepted", timeout=5) as response:
            total: int = json.load(response)
            return total
    except OSError:
        time.sleep(0.05)
        return None


def _rows(contender: _Contender, loads: _Loads) -> Iterator[Row]:
    name, barred = contender.name, contender.barred
    for route, runs in loads.items():
        what = _TOLD[route]
        yield Figure(_NAME, name, what, "requests/s", [run.rate for run in runs])
        yield Figure(_NAME, name, f"{what}: median", "ms", [run.p50 * 1000 for run in runs])
        yield Figure(_NAME, name, f"{what}: 99 %", "ms", [run.p99 * 1000 for run in runs])
    for route in contender.routes:
        pairs = list(zip(loads[route], loads[_WITHOUT], strict=True))
        what = _TOLD[route]
        share = [mine.rate / other.rate for mine, other in pairs]
        yield Figure(
            _NAME, name, f"{what}: requests/s, to without", "times", share, _SHARE if barred else None
        )
        later = [(mine.p99 - other.p99) * 1000 for mine, other in pairs]
        yield Figure(_NAME, name, f"{what}: 99 %, later", "ms", later, _LATER if barred else None)
