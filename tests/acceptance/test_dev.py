"""``celeriac dev``: one terminal, three processes, one end."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.acceptance.processes import Launcher, Process, alive, descendants, free_port, tool, wait_until_up
from tests.acceptance.quickstart import Quickstart


def start(quickstart: Quickstart, *options: str) -> Process:
    return quickstart.run("celeriac", "dev", "main:app", "--port", str(quickstart.port), *options)


def start_and_wait(quickstart: Quickstart, *options: str) -> Process:
    process = start(quickstart, *options)
    process.wait_for_line(r"^celeriac \| http://127\.0\.0\.1:\d+ is up")
    process.wait_for_line(r"^worker   \| .* ready\.$")
    return process


def children(process: Process) -> set[int]:
    return {child.pid for child in psutil.Process(process.pid).children()}


def test_one_command_serves_works_and_beats(quickstart: Quickstart) -> None:
    quickstart.env["HEARTBEAT_SECONDS"] = "1"
    process = start_and_wait(quickstart)
    quickstart.wait_for_status(quickstart.process_data("a,b\n1,2"), "SUCCESS")
    process.wait_for_line(r"^worker   \| .*summarized 1 rows of user 1")
    process.wait_for_line(r"^beat     \| .*Sending due task heartbeat")
    process.wait_for_line(r"^worker   \| .*heartbeat: load")
    assert "\x1b" not in process.output  # no colours into a pipe


@pytest.fixture
def _heard() -> Iterator[None]:
    """Have children hear of SIGHUP, also where the tests run under nohup: they would inherit that it is ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_heard")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_all_of_it(quickstart: Quickstart, number: int) -> None:
    process = start_and_wait(quickstart)
    everything = descendants(process.pid)
    assert len(everything) >= 3
    before = time.monotonic()
    process.signal(number)
    assert process.wait(15) == 0
    assert time.monotonic() - before < 8
    assert not [child for child in everything if alive(child.pid)]
    assert "Traceback" not in process.output
    assert "ended by SIGKILL" not in process.output


def test_ctrl_c_in_a_terminal(quickstart: Quickstart) -> None:
    terminal, inside = pty.openpty()
    popen = subprocess.Popen(
        # A shell with job control off, as make runs its recipes: Ctrl-C reaches the whole foreground group.
        [
            sys.executable,
            "-c",
            CONTROLLING_TERMINAL,
            tool("celeriac"),
            "dev",
            "main:app",
            "--port",
            str(quickstart.port),
        ],
        cwd=quickstart.folder,
        env={**os.environ, **quickstart.env},
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
    )
    os.close(inside)
    try:
        output = read_until(terminal, rb"is up[\s\S]* ready\.|ready\.[\s\S]*is up")
        everything = descendants(popen.pid)
        os.write(terminal, b"\x03")
        output += read_until(terminal, None)
        assert popen.wait(15) == 0
    finally:
        popen.kill()
        popen.wait()
        os.close(terminal)
    assert b"\x1b[36mapi      |\x1b[0m" in output
    assert b"Traceback" not in output
    assert not [child for child in everything if alive(child.pid)]


CONTROLLING_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def read_until(terminal: int, pattern: bytes | None) -> bytes:
    """Read from a pseudo terminal until the pattern is there; without one until its last process is gone."""
    output = b""
    while True:
        try:
            chunk = os.read(terminal, 65_536)
        except OSError:  # EIO: nobody has the other end open
            chunk = b""
        output += chunk
        if not chunk or (pattern is not None and re.search(pattern, output)):
            assert pattern is None or chunk, output.decode(errors="replace")
            return output


def test_a_change_reloads_all_three(quickstart: Quickstart) -> None:
    process = start_and_wait(quickstart)
    before = children(process)
    assert len(before) == 3
    mark = process.mark()
    for path, old, new in [
        ("main.py", "Data processing started", "Data processing begun"),
        ("worker/tasks.py", "summarized %d rows", "looked at %d rows"),
    ]:
        source = quickstart.folder / path
        source.write_text(source.read_text().replace(old, new))
    process.wait_for_line(r"^celeriac \| .*changed; reloading", after=mark)
    process.wait_for_line(r"^celeriac \| .*is up", after=mark)
    process.wait_for_line(r"^worker   \| .* ready\.$", after=mark)
    process.wait_for_line(r"^beat     \| .*beat: Starting", after=mark)
    after = children(process)
    assert len(after) == 3
    assert not before & after
    answer = quickstart.http.post("/process-data", json={"user_id": 1, "payload": "a\n1"})
    assert answer.json()["message"] == "Data processing begun"
    process.wait_for_line(r"^worker   \| .*looked at 1 rows")


def test_a_change_that_breaks_it_is_shown_and_the_next_mends_it(quickstart: Quickstart) -> None:
    process = start_and_wait(quickstart)
    source = quickstart.folder / "worker" / "tasks.py"
    text = source.read_text()
    source.write_text(text + "\nraise RuntimeError('half done')\n")
    process.wait_for_line("^RuntimeError: half done")
    process.wait_for_line(r"^celeriac \| waiting for the next change")
    assert children(process) == set()
    mark = process.mark()
    source.write_text(text)
    process.wait_for_line(r"^celeriac \| .*is up", after=mark)
    quickstart.wait_for_status(quickstart.process_data("a\n1"), "SUCCESS")


def test_without_reload_a_change_does_nothing(quickstart: Quickstart) -> None:
    process = start_and_wait(quickstart, "--no-reload", "--no-beat")
    before = children(process)
    assert len(before) == 2
    (quickstart.folder / "main.py").touch()
    quickstart.wait_for_status(quickstart.process_data("a\n1"), "SUCCESS")
    assert children(process) == before
    assert "reloading" not in process.output


def test_a_worker_that_dies_is_started_again(quickstart: Quickstart) -> None:
    process = start_and_wait(quickstart)
    worker = next(child for child in psutil.Process(process.pid).children() if "worker" in child.cmdline())
    mark = process.mark()
    worker.kill()
    process.wait_for_line(r"^celeriac \| worker was ended by SIGKILL; starting it again in 1 s", after=mark)
    process.wait_for_line(r"^worker   \| .* ready\.$", after=mark)
    quickstart.wait_for_status(quickstart.process_data("a\n1"), "SUCCESS")


def test_nothing_outlives_a_killed_supervisor(quickstart: Quickstart) -> None:
    process = start_and_wait(quickstart)
    everything = descendants(process.pid)
    process.signal(signal.SIGKILL)
    _, left = psutil.wait_procs(everything, timeout=15)
    assert not left


def test_port_taken(quickstart: Quickstart) -> None:
    with socket.create_server(("127.0.0.1", quickstart.port)):
        process = start(quickstart)
        assert process.wait() == 1
    assert process.output == (
        f"Port {quickstart.port} on 127.0.0.1 is taken by another program. "
        f"End that program, or choose another port: --port {quickstart.port + 1}"
    )
    assert not list(quickstart.folder.glob("*.db"))


def test_error_of_the_user_is_shown_without_frames_of_ours(quickstart: Quickstart) -> None:
    (quickstart.folder / "worker" / "tasks.py").write_text("import json\njson.loads('')\n")
    process = start(quickstart)
    assert process.wait() == 1
    lines = process.output.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "main.py" in lines[1]
    assert "json.decoder.JSONDecodeError" in process.output
    assert lines[-1].startswith("Hint: ")
    assert not re.search(r"celeriac/|importlib", process.output)


@pytest.mark.parametrize(
    ("app", "sentence"),
    [
        ("main", "'main' does not name an application. Write it as MODULE:NAME, such as main:app."),
        ("nowhere:app", "There is no module 'nowhere' in "),
        ("main:missing", "There is no 'missing' in main "),
    ],
)
def test_a_path_that_names_nothing(quickstart: Quickstart, app: str, sentence: str) -> None:
    process = quickstart.run("celeriac", "dev", app, "--port", str(quickstart.port))
    assert process.wait() == 1
    assert process.output.startswith(sentence)
    assert "Traceback" not in process.output


def test_a_missing_package_is_named(quickstart: Quickstart) -> None:
    source = quickstart.folder / "main.py"
    source.write_text(
        "import surely_not_installed\n" + source.read_text().replace("from __future__ import annotations", "")
    )
    process = start(quickstart)
    assert process.wait() == 1
    assert "imports 'surely_not_installed', which is not installed" in process.output


def test_several_celery_apps_want_a_choice(tmp_path: Path, launcher: Launcher) -> None:
    (tmp_path / "main.py").write_text(
        "from celeriac import Celery\nfrom fastapi import FastAPI\n"
        "one, two = Celery('one'), Celery('two')\nalias = one\napp = FastAPI()\n"
    )
    port = str(free_port())
    process = launcher.start(["celeriac", "dev", "main:app", "--port", port], cwd=tmp_path)
    assert process.wait() == 1
    assert process.output == (
        "There are several Celery apps (one, two) in main. "
        "Name the one to run: celeriac dev main:app --celery MODULE:NAME"
    )
    chosen = launcher.start(
        ["celeriac", "dev", "main:app", "--port", port, "--celery", "main:two"], cwd=tmp_path
    )
    wait_until_up(f"http://127.0.0.1:{port}/docs", chosen)
    chosen.wait_for_line(r"^worker   \| .*app: +two:")


def test_the_worker_reads_the_queues_of_all_tasks(tmp_path: Path, launcher: Launcher) -> None:
    (tmp_path / "heavy.py").write_text(
        "from celeriac import TaskRouter\ntasks = TaskRouter(queue='slow')\n"
        "@tasks.task\nasync def build() -> None: ...\n"
    )
    (tmp_path / "main.py").write_text(
        "from celeriac import Celery\nfrom fastapi import FastAPI\n"
        "celery = Celery('shop', include=['heavy:tasks'])\napp = FastAPI(lifespan=celery.lifespan)\n"
    )
    process = launcher.start(["celeriac", "dev", "main:app", "--port", str(free_port())], cwd=tmp_path)
    process.wait_for_line(r"^worker   \| .*> celery ")
    process.wait_for_line(r"^worker   \| .*> slow ")


def test_a_damaged_database_is_one_sentence(quickstart: Quickstart) -> None:
    (quickstart.folder / "celery.db").write_bytes(b"no database at all" * 1000)
    process = start(quickstart)
    assert process.wait() == 1
    (line,) = process.output.splitlines()
    assert "celery.db" in line
    assert "damaged" in line
