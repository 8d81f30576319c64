"""Sessions that tell what happens to them, for tests of dependencies."""

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends

from celeriac import Celery
from celeriac.worker.embedded import run_embedded

log: list[str] = []


@asynccontextmanager
async def working(app: Celery) -> AsyncIterator[None]:
    async with app, run_embedded(app, concurrency=10):
        yield


class Session:
    """A resource that tells what happens to it."""

    def __init__(self, name: str = "session") -> None:
        self.name = name

    def add(self, value: int) -> int:
        log.append(f"{self.name} adds {value}")
        return value + 1


async def get_session() -> AsyncIterator[Session]:
    log.append("open")
    try:
        yield Session()
        log.append("commit")
    except Exception as exc:
        log.append(f"rollback: {type(exc).__name__}")
        raise
    finally:
        log.append("close")


def get_blocking_session() -> Iterator[Session]:
    log.append(f"open in {'a thread' if threading.current_thread().name.startswith('AnyIO') else 'the loop'}")
    try:
        yield Session("blocking session")
    except BaseException as exc:
        log.append(f"rollback: {type(exc).__name__}")
        raise
    finally:
        log.append("close")


SessionDependency = Annotated[Session, Depends(get_session)]


class Settings:
    """A class as a dependency, whose own parameter has a default."""

    def __init__(self, session: SessionDependency, factor: int = 2) -> None:
        self.session = session
        self.factor = factor
