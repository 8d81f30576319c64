"""A folder with the ledger app: workers on it, tasks into it, and the reading of what the tasks wrote down."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.acceptance.processes import Launcher, Process

from celeriac import Celery

SOURCE = Path(__file__).parent / "apps" / "ledger.py"


class Ledger:
    """The app of ``apps/ledger.py`` in a folder of its own, on that folder's ``celery.db``."""

    def __init__(self, folder: Path, launcher: Launcher, env: Mapping[str, str] | None = None) -> None:
        folder.mkdir(exist_ok=True)
        shutil.copy(SOURCE, folder)
        self.folder = folder
        self.launcher = launcher
        self.env = dict(env or {})
        url = f"sqlite:///{folder / 'celery.db'}"
        #: A client of the same queue; it does not know the tasks, and need not.
        self.client = Celery("client", broker=url, backend=url, set_as_current=False)

    def run(self, *arguments: str) -> Process:
        """Start a command in the folder."""
        return self.launcher.start(arguments, cwd=self.folder, env=self.env)

    def start_worker(self, *options: str) -> Process:
        """Start ``celery worker``, and wait until it is ready."""
        worker = self.run("celery", "-A", "ledger", "worker", "--loglevel=info", *options)
        worker.wait_for_line(r" ready\.$")
        return worker

    def lines(self, what: str) -> Counter[str]:
        """How often each task has written ``start`` or ``end``."""
        counter: Counter[str] = Counter()
        for path in (self.folder / "ledger").glob("*.log"):
            for line in path.read_text().splitlines():
                kind, task_id, _pid, _at = line.split()
                if kind == what:
                    counter[task_id] += 1
        return counter
