"""The supervisor: three processes that start, reload and end together."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from celeriac.config import FASTAPI_APP, color_wanted
from celeriac.dev import address
from celeriac.dev.output import Console
from celeriac.dev.probe import ProbeFailed, run_probe
from celeriac.dev.process import Command
from celeriac.dev.reload import Changes, describe, watch
from celeriac.dev.service import StartFailed, keep_running

__all__ = ["Options", "run"]

T = TypeVar("T")

#: Seconds that the children have to end by themselves: for requests, and tasks that are under way.
GRACE = 4.0

#: Seconds that the API waits for open connections; event streams would keep it for ever.
_API_GRACE = 2


@dataclass(frozen=True, slots=True)
class Options:
    """What ``celeriac dev`` was asked to run. ``app`` and ``celery`` are ``MODULE:NAME``."""

    app: str
    celery: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    reload: bool = True
    beat: bool = True
    concurrency: int | None = None

    def commands(self, celery: str, *, color: bool) -> list[Command]:
        """The processes to run for the Celery app at ``celery``."""
        api = ["--host", self.host, "--port", str(self.port), f"--timeout-graceful-shutdown={_API_GRACE}"]
        api.append("--use-colors" if color else "--no-use-colors")
        worker = ["--loglevel=info", "--hostname=dev@%h"]
        if self.concurrency is not None:
            worker.append(f"--concurrency={self.concurrency}")
        commands = [
            Command("api", "uvicorn", (self.app, *api)),
            Command("worker", "celery", ("-A", celery, "worker", *worker)),
        ]
        if self.beat:
            commands.append(Command("beat", "celery", ("-A", celery, "beat", "--loglevel=info")))
        return commands


def run(options: Options) -> int:
    """Run until Ctrl-C or SIGTERM. Returns the exit code."""
    console = Console(sys.stdout, color=color_wanted(sys.stdout.isatty()))
    return asyncio.run(_Supervisor(options, console, Path.cwd()).run())


class _Stopped(Exception):
    """Somebody has asked the supervisor to end."""


class _Supervisor:
    def __init__(self, options: Options, console: Console, folder: Path) -> None:
        self._options = options
        self._console = console
        self._folder = folder
        self._stop = asyncio.Event()
        self._services: list[asyncio.Task[None]] = []
        inherited = os.environ.get("PYTHONPATH")
        self._environment = {
            **os.environ,
            "PYTHONPATH": f"{folder}{os.pathsep}{inherited}" if inherited else str(folder),
            "PYTHONUNBUFFERED": "1",
            FASTAPI_APP: options.app,
        }

    async def run(self) -> int:
        self._handle_signals()
        try:
            address.check(self._options.host, self._options.port)
        except address.AddressUnusable as exc:
            self._console.error(str(exc))
            return 1
        async with watch(self._folder, enabled=self._options.reload) as changes:
            try:
                return await self._run_until_stopped(changes)
            except _Stopped:
                return 0

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        # Under nohup somebody has asked us to outlive the terminal.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGHUP, self._on_signal)

    def _on_signal(self) -> None:
        if not self._stop.is_set():
            self._console.say("stopping; once more to stop without waiting")
            self._stop.set()
            return
        for task in self._services:
            task.cancel()

    async def _run_until_stopped(self, changes: Changes) -> int:
        has_worked = False
        probing = self._start_probe()
        while True:
            try:
                celery = await self._unless_stopped(probing)
                probing = await self._serve(celery, changes)
                has_worked = True
            except (ProbeFailed, StartFailed) as exc:
                self._console.error(str(exc))
                # What has never worked wants an exit code; what worked a minute ago wants its next save.
                if not (has_worked and self._options.reload):
                    return 1
                self._console.say("waiting for the next change of a source file")
                await self._unless_stopped(changes.next())
                probing = self._start_probe()

    def _start_probe(self) -> asyncio.Task[str]:
        return asyncio.create_task(run_probe(self._options.app, self._options.celery, self._environment))

    async def _serve(self, celery: str, changes: Changes) -> asyncio.Task[str]:
        """Run everything until source files change. Returns the probe of the new code; it runs while the old ends."""
        self._services = [
            asyncio.create_task(keep_running(command, self._environment, self._console, grace=GRACE))
            for command in self._options.commands(celery, color=self._console.color)
        ]
        announcing = asyncio.create_task(self._announce())
        changed = asyncio.create_task(changes.next())
        try:
            await self._unless_stopped(_first_done(*self._services, changed))
            for service in self._services:
                if service.done():
                    service.result()  # raises StartFailed: a service does not return
            self._console.say(f"{describe(changed.result(), self._folder)} changed; reloading")
            return self._start_probe()
        finally:
            await _cancel(announcing, changed, *self._services)

    async def _announce(self) -> None:
        options = self._options
        await address.wait_until_up(options.host, options.port)
        name = f"[{options.host}]" if ":" in options.host else options.host
        self._console.say(f"http://{name}:{options.port} is up, its API at /docs; Ctrl-C ends everything")

    async def _unless_stopped(self, work: Awaitable[T]) -> T:
        """The result of ``work``. Raises _Stopped, and cancels the work, when the supervisor is to end."""
        working = asyncio.ensure_future(work)
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await _first_done(working, stopping)
            if stopping.done():
                raise _Stopped
            return working.result()
        finally:
            await _cancel(working, stopping)


async def _first_done(*tasks: asyncio.Future[Any]) -> None:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancel the tasks, and wait for their end; they may be cancelled again meanwhile."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
