"""Real ``celery beat`` processes on one SQLite file: restarts, two at once, SIGKILL, SIGTERM, a damaged file."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.processes import Launcher, Process
from tests.interop.conftest import wait_until

pytestmark = pytest.mark.timeout(60)

LEASE = 1.5

_APP = """
import json, os
from celeriac import Celery

celery = Celery("site")
celery.conf.celeriac_beat_lease = {lease}
celery.conf.result_expires = None
celery.conf.beat_schedule = {{
    name: {{"task": "site.note", "schedule": seconds, "args": [name]}}
    for name, seconds in json.loads(os.environ["SCHEDULE"]).items()
}}

@celery.task(name="site.note")
def note(name: str) -> None: ...
"""


class Site:
    """A folder with an app and its file, and the programs that work on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.launcher = Launcher()
        (folder / "site_app.py").write_text(_APP.format(lease=LEASE))

    def start(self, *arguments: str, **schedule: float) -> Process:
        return self.launcher.start(
            [sys.executable, "-m", "celery", "-A", "site_app.celery", *arguments],
            cwd=self.folder,
            env={"SCHEDULE": json.dumps(schedule), "PYTHONPATH": str(self.folder)},
        )

    def beat(self, *options: str, **schedule: float) -> Process:
        return self.start("beat", "--loglevel=info", *options, **schedule)

    def query(self, statement: str) -> list[Any]:
        if not (self.folder / "celery.db").exists():
            return []
        connection = sqlite3.connect(self.folder / "celery.db")
        try:
            return connection.execute(statement).fetchall()
        except sqlite3.OperationalError as exc:
            if "no such table" not in str(exc):
                raise
            return []
        finally:
            connection.close()

    def sent(self, name: str) -> list[float]:
        """When each run was sent, as the records have it."""
        rows = self.query(
            f"SELECT enqueued_at FROM celery_taskmeta WHERE instr(CAST(args AS TEXT), '{name}') ORDER BY id"
        )
        return [row[0] for row in rows]

    def run_count(self, name: str) -> int:
        [[count]] = self.query(f"SELECT total_run_count FROM celeriac_schedule WHERE name = '{name}'")
        return int(count)

    def leader(self) -> int:
        """The process id of the beat that leads, or 0."""
        rows = self.query("SELECT holder FROM celeriac_leader")
        return int(rows[0][0].split(":")[1]) if rows else 0

    def messages(self) -> int:
        [[count]] = self.query("SELECT count(*) FROM celeriac_message")
        return int(count)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.launcher.clean_up()


def test_beat_remembers_in_the_one_file_over_a_restart(site: Site) -> None:
    first = site.beat(often=0.1, rarely=3600)
    wait_until(lambda: len(site.sent("often")) >= 3)
    began = time.monotonic()
    first.terminate()
    assert first.wait() == 0
    assert time.monotonic() - began < 5
    assert f"db -> sqlite:///{site.folder}/celery.db" in first.output
    assert site.leader() == 0
    before = site.query("SELECT last_run_at FROM celeriac_schedule WHERE name = 'rarely'")
    count = site.run_count("often")

    second = site.beat("-S", "celeriac", often=0.1, rarely=3600)
    wait_until(lambda: site.run_count("often") >= count + 3)
    second.terminate()
    assert second.wait() == 0

    assert site.sent("rarely") == []
    assert site.query("SELECT last_run_at FROM celeriac_schedule WHERE name = 'rarely'") == before
    assert site.messages() == len(site.sent("often")) == site.run_count("often")
    assert {path.name for path in site.folder.iterdir()} <= {
        "__pycache__",
        "celery.db",
        "celery.db-shm",
        "celery.db-wal",
        "site_app.py",
    }


def test_two_beats_send_each_run_once_and_one_follows_the_other_within_the_lease(site: Site) -> None:
    beats = [site.beat(often=0.2) for _ in range(2)]
    by_pid = {beat.pid: beat for beat in beats}
    waiting = wait_until(lambda: [beat for beat in beats if "waiting to take over" in beat.output])
    wait_until(lambda: len(site.sent("often")) >= 5)
    leader = by_pid.pop(site.leader())
    [other] = by_pid.values()
    assert waiting == [other]

    leader.kill()
    killed = time.time()
    leader.wait()
    wait_until(lambda: site.sent("often")[-1] > killed)
    took = site.sent("often")[-1] - killed
    count = len(site.sent("often"))
    wait_until(lambda: len(site.sent("often")) >= count + 5)
    other.terminate()
    assert other.wait() == 0

    assert took < LEASE + 1
    assert site.messages() == len(site.sent("often")) == site.run_count("often")
    sent = site.sent("often")
    assert min(b - a for a, b in pairwise(sent)) > 0.05
    assert not any("rror" in beat.output for beat in beats)


def test_a_beat_that_is_killed_again_and_again_sends_each_run_once(site: Site) -> None:
    for _ in range(2):
        beat = site.beat(all_the_time=0.001)
        count = len(site.sent("all_the_time"))
        wait_until(lambda count=count: len(site.sent("all_the_time")) > count + 20)  # type: ignore[misc]
        beat.kill()
        beat.wait()

    assert site.messages() == len(site.sent("all_the_time")) == site.run_count("all_the_time")


def test_a_leader_that_stood_still_does_not_repeat_what_was_sent_meanwhile(site: Site) -> None:
    beats = {beat.pid: beat for beat in [site.beat(often=0.2) for _ in range(2)]}
    wait_until(lambda: site.sent("often"))
    stalled = beats.pop(site.leader())
    [other] = beats.values()
    other.wait_for_line("waiting to take over")
    stalled.signal(signal.SIGSTOP)
    wait_until(lambda: site.leader() == other.pid)
    stalled.signal(signal.SIGCONT)

    stalled.wait_for_line("waiting to take over")
    count = len(site.sent("often"))
    wait_until(lambda: len(site.sent("often")) > count + 2)
    other.terminate()
    other.wait()

    assert site.messages() == len(site.sent("often")) == site.run_count("often")


def test_a_worker_with_beat_hands_the_lead_back(site: Site) -> None:
    worker = site.start("worker", "-B", "--loglevel=info", often=0.2)
    wait_until(lambda: site.query("SELECT 1 FROM celery_taskmeta WHERE status = 'SUCCESS'"))
    assert site.leader() != 0

    worker.terminate()
    assert worker.wait() == 0

    wait_until(lambda: site.leader() == 0)
    assert not list(site.folder.glob("celerybeat-schedule*"))


def test_a_damaged_file_is_one_sentence_and_an_exit_code(site: Site) -> None:
    (site.folder / "celery.db").write_bytes(os.urandom(8192))

    beat = site.beat(often=1)

    assert beat.wait() == 1
    assert "the file is damaged or no SQLite database" in beat.output
    assert "Traceback" not in beat.output


def test_sigterm_ends_a_beat_that_is_still_starting(site: Site) -> None:
    beat = site.beat(often=1)
    beat.wait_for_line("beat: Starting")

    beat.terminate()

    assert beat.wait(5) == 0
    assert "Traceback" not in beat.output
