"""The plugin for mypy, run on a small project."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_CONFIG = """
[mypy]
strict = true
plugins = celeriac.mypy
follow_untyped_imports = false
[mypy-celery.*,kombu.*,vine.*,billiard.*]
ignore_missing_imports = true
"""

_SHARED = """
from typing import Annotated
from fastapi import Depends

class Session: ...

def get_session() -> Session:
    return Session()

SessionDependency = Annotated[Session, Depends(get_session)]
"""

_PROJECT = """
from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, assert_type

import shared
from fastapi import Depends, Header, Request
from shared import Session, SessionDependency, get_session
from shared import SessionDependency as Renamed

from celeriac import Celery, Task, TaskContext, TaskHandle

celery = Celery("x", broker="memory://x")
Local = Renamed

@celery.task
async def direct(user: int, session: Annotated[Session, Depends(get_session)]) -> str:
    return ""

@celery.task(max_retries=3)
async def in_the_middle(user: int, session: SessionDependency, name: str = "") -> str:
    return ""

@celery.task(bind=True)
def bound(
    self: Task[..., Any], context: TaskContext, session: shared.SessionDependency, user: int, request: Request
) -> str:
    return ""

@celery.task
async def alone(session: Local) -> AsyncIterator[str]:
    yield ""

@celery.task
async def by_default(
    user: int, session: Session = Depends(get_session), *, tenant: Annotated[str, Header()]
) -> str:
    return ""

@celery.task
async def maybe(user: int, context: TaskContext | None) -> str:
    return ""

@celery.task
async def plain(user: int, note: Annotated[str, "no dependency"]) -> str:
    return ""

async def calls() -> None:
    assert_type(await direct.enqueue(1), TaskHandle[str])
    assert_type(await direct.using(countdown=1).enqueue(user=1), TaskHandle[str])
    assert_type(await in_the_middle.enqueue(1, "a"), TaskHandle[str])
    assert_type(await bound.enqueue(1), TaskHandle[str])
    assert_type(await alone.enqueue(), TaskHandle[None])
    assert_type(await by_default.enqueue(1), TaskHandle[str])
    assert_type(await maybe.enqueue(1), TaskHandle[str])
    assert_type(await plain.enqueue(1, "a"), TaskHandle[str])
    await direct.enqueue("1")  # type: ignore[arg-type]
    await direct.enqueue(1, Session())  # type: ignore[call-arg]
    await in_the_middle.enqueue()  # type: ignore[call-arg]
    await by_default.enqueue(1, session=Session())  # type: ignore[call-arg]
    await plain.enqueue(1)  # type: ignore[call-arg]
"""


def test_injected_parameters_are_no_part_of_a_tasks_signature(tmp_path: Path) -> None:
    (tmp_path / "mypy.ini").write_text(_CONFIG)
    (tmp_path / "shared.py").write_text(_SHARED)
    project = tmp_path / "project.py"
    # The second time what is shared comes from mypy's cache, which does not keep what stands in ``Annotated``.
    for text in (_PROJECT, f"{_PROJECT}\n# changed\n"):
        project.write_text(text)
        run = subprocess.run(
            [sys.executable, "-m", "mypy", "project.py"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stdout + run.stderr
