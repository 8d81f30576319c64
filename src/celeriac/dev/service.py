"""Keeps one command running: starts it again when it dies, and knows a start that cannot succeed."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Mapping

from celeriac.dev.output import Console
from celeriac.dev.process import Child, Command

__all__ = ["StartFailed", "keep_running"]

#: Who ends by itself with an error within this many seconds would do so again: its code is wrong, not its luck.
_STARTUP = 10.0

_BACKOFF_LIMIT = 30.0


class StartFailed(Exception):
    """A command has ended with an error before it was up."""


async def keep_running(
    command: Command, environment: Mapping[str, str], console: Console, *, grace: float
) -> None:
    """Run ``command`` until cancelled. The first cancellation ends it within ``grace`` seconds, the second at once.

    A command that dies is started again after 1, 2, 4, … up to 30 s. Raises StartFailed.
    """
    failures = 0
    while True:
        started_at = time.monotonic()
        child = await Child.start(command, environment, lambda line: console.line(command.name, line))
        try:
            code = await child.wait()
        except asyncio.CancelledError:
            if time.monotonic() - started_at < _STARTUP:
                # Interrupted in the middle of its start it has nothing to tell but where it was: beat's SIGTERM
                # handler fails while its scheduler is being made.
                child.mute()
            await child.stop(grace)
            raise
        lived = time.monotonic() - started_at
        if code > 0 and lived < _STARTUP:
            raise StartFailed(f"{command.name} could not start: it {_ending(code)}.")
        failures = 0 if lived > _BACKOFF_LIMIT else failures + 1
        delay = min(2.0 ** max(failures - 1, 0), _BACKOFF_LIMIT)
        console.say(f"{command.name} {_ending(code)}; starting it again in {delay:.0f} s")
        await asyncio.sleep(delay)


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
