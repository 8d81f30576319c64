"""Runs a module as the main program, and ends it when the supervisor is gone.

The supervisor holds the other end of standard input and never writes to it. End of file there means that it has died
without a chance to say so (SIGKILL, a closed laptop's lost session); without this its children would live for ever,
keep the port, and run tasks with yesterday's code.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

from celeriac.dev.process import COLD_GRACE, COLD_SHUTDOWN

__all__ = ["main"]

#: Seconds that it may take to end by itself.
_GRACE = 4.0


def main() -> None:
    """``python -m celeriac.dev.child MODULE [ARGUMENT…]``."""
    threading.Thread(target=_end_with_supervisor, name="celeriac-dev-guard", daemon=True).start()
    module = sys.argv[1]
    if module == "celery":
        from celery import signals

        from celeriac.dev.queues import read_all

        signals.celeryd_init.connect(read_all)
    sys.argv = sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with_supervisor() -> None:
    while os.read(0, 1024):
        pass
    for number, seconds in ((signal.SIGTERM, _GRACE), (COLD_SHUTDOWN, COLD_GRACE)):
        os.kill(os.getpid(), number)
        time.sleep(seconds)
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    main()
