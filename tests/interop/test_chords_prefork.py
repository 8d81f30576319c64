"""Chords on one SQLite file: of stock workers with processes of their own, and of one of them and one of ours.

They are counted, and nobody polls for them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import celery
import pytest
from celery.exceptions import ChordError
from tests.acceptance.processes import Launcher, Process

_APP = """
import os, pathlib, signal
import celery
from celery.signals import before_task_publish
from celeriac.transports import register

register()
here = pathlib.Path(__file__).parent
url = f"sqlite:///{here}/celery.db"
app = celery.Celery("stock", broker=url, backend=url, set_as_current=False)
app.conf.update(
    task_acks_late=True, worker_prefetch_multiplier=1, broker_connection_retry_on_startup=True,
    broker_transport_options={"visibility_timeout": 2}, result_chord_join_timeout=5.0,
)

@app.task(name="add", shared=False)
def add(x, y):
    if y < 0:
        raise ValueError("unlucky", x)
    return x + y

@app.task(name="total", shared=False)
def total(numbers):
    return sum(sum(each) if isinstance(each, list) else each for each in numbers)

@app.task(name="note", shared=False)
def note(request, error, traceback):
    (here / "noted").write_text(f"{request.id} {error}")

@app.task(name="widen", shared=False, bind=True)
def widen(self, x):
    if x < 3:
        self.add_to_chord(widen.s(x + 1))
    return x

@before_task_publish.connect(weak=False)
def die(sender=None, **_):
    if sender == "total" and (here / "bomb").exists():
        os.killpg(os.getppid(), signal.SIGKILL)
        signal.pause()
"""


# The same tasks on our worker; what goes to the queue ``ours`` is its, the rest the stock worker's.
_OURS = """
import os, pathlib, signal
import celeriac
from celery.signals import before_task_publish

here = pathlib.Path(__file__).parent
app = celeriac.Celery("ours", broker=f"sqlite:///{here}/celery.db", set_as_current=False)
app.conf.update(
    task_default_queue="ours", broker_transport_options={"visibility_timeout": 2}, result_chord_join_timeout=5.0
)

@app.task(name="add", shared=False)
async def add(x, y):
    if y < 0:
        raise ValueError("unlucky", x)
    return x + y

@app.task(name="total", shared=False)
async def total(numbers: list):
    return sum(sum(each) if isinstance(each, list) else each for each in numbers)

@before_task_publish.connect(weak=False)
def die(sender=None, **_):
    if sender == "total" and (here / "bomb").exists():
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Any]:
    (tmp_path / "stock.py").write_text(_APP)
    (tmp_path / "ours.py").write_text(_OURS)
    namespace: dict[str, Any] = {"__file__": str(tmp_path / "stock.py"), "__name__": "stock"}
    exec(compile(_APP, "stock.py", "exec"), namespace)
    yield namespace["app"]
    namespace["app"].close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    launcher = Launcher()

    def worker(name: str = "stock:app", *options: str) -> Process:
        pool = options or ("-P", "prefork", "-c", "3", "--without-gossip", "--without-mingle")
        started = launcher.start(
            [sys.executable, "-m", "celery", "-A", name, "worker", "--loglevel=info", *pool], cwd=tmp_path
        )
        started.wait_for_line(r" ready\.")
        return started

    yield worker
    launcher.clean_up()


def test_stock_processes_complete_chords_without_polling(
    app: Any, start: Callable[..., Process], tmp_path: Path
) -> None:
    worker = start()
    add, total, note, widen = (app.tasks[name] for name in ("add", "total", "note", "widen"))

    plain = celery.chord((add.s(n, n) for n in range(40)), app=app)(total.s())
    assert plain.get(timeout=30) == 2 * sum(range(40))
    nested = celery.chord([add.s(1, 1), celery.group(add.s(2, 2), add.s(3, 3), app=app)], app=app)(total.s())
    assert nested.get(timeout=30) == 12
    chained = celery.chain(celery.group(add.s(1, 1), add.s(2, 2), app=app), total.s(), add.s(100), app=app)()
    assert chained.get(timeout=30) == 106
    grown = celery.chord([widen.s(0), widen.s(3)], app=app)(total.s())
    assert grown.get(timeout=30) == 0 + 1 + 2 + 3 + 3

    failing = celery.chord([add.s(1, 1), add.s(1, -1)], app=app)(total.s().on_error(note.s()))
    with pytest.raises(ChordError, match=r"Dependency .* raised ValueError\('unlucky', 1\)"):
        failing.get(timeout=30, follow_parents=False)
    assert (tmp_path / "noted").read_text().startswith(f"{failing.id} Dependency")

    assert "chord_unlock" not in worker.output.partition(" ready.")[2]


@pytest.mark.parametrize("queue", ["celery", "ours"])
def test_a_worker_that_dies_before_the_body_is_published_does_not_lose_the_chord(
    app: Any, start: Callable[..., Process], tmp_path: Path, queue: str
) -> None:
    arguments = () if queue == "celery" else ("ours:app", "-Q", "ours")
    (tmp_path / "bomb").touch()
    worker = start(*arguments)
    chord = celery.chord([on(app, queue, "add", n, n) for n in range(3)], on(app, queue, "total"), app=app)()
    worker.wait(30)
    (tmp_path / "bomb").unlink()
    # The message comes again after two seconds, long before the claim of the worker that has died expires.
    start(*arguments)
    assert chord.get(timeout=40) == 6


@pytest.fixture
def both(start: Callable[..., Process]) -> list[Process]:
    return [start(), start("ours:app", "-Q", "ours", "-n", "ours@here")]


def on(app: Any, queue: str, name: str, *args: Any) -> Any:
    return app.tasks[name].s(*args).set(queue=queue)


@pytest.mark.parametrize("last", ["celery", "ours"])
def test_a_stock_worker_and_ours_complete_chords_together(app: Any, both: list[Process], last: str) -> None:
    def half(numbers: Iterable[int]) -> list[Any]:
        return [on(app, ("celery", "ours")[n % 2], "add", n, n) for n in numbers]

    chords = [celery.chord(half(range(20)), on(app, last, "total"), app=app)() for _ in range(5)]
    assert [chord.get(timeout=30) for chord in chords] == [2 * sum(range(20))] * 5
    nested = celery.chord(
        [*half([1]), celery.group(half([2, 3]), app=app)], on(app, last, "total"), app=app
    )()
    assert nested.get(timeout=30) == 12

    for unlucky in ("celery", "ours"):
        failing = celery.chord(
            [*half(range(4)), on(app, unlucky, "add", 7, -1)], on(app, last, "total"), app=app
        )()
        with pytest.raises(ChordError, match=r"Dependency .* raised ValueError\('unlucky', 7\)"):
            failing.get(timeout=30, follow_parents=False)
    assert not any("chord_unlock" in worker.output.partition(" ready.")[2] for worker in both)
