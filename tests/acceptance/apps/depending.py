"""An API with its tasks in one module, as a beginner writes them: sessions that write down what becomes of them."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request

from celeriac import Celery

AUDIT = Path("audit.txt")


def audit(what: str) -> None:
    """One line, written in one piece: several processes write."""
    file = os.open(AUDIT, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{what}\n".encode())
    os.close(file)


celery = Celery("depending", set_as_current=False)
celery.conf.update(json.loads(os.environ.get("DEPENDING_CONF", "{}")))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    if os.environ.get("BROKEN_LIFESPAN"):
        raise ConnectionError("no database at db.internal")
    if os.environ.get("SLOW_LIFESPAN"):
        audit("lifespan waits")
        await asyncio.sleep(60)
    audit(f"lifespan begins {os.getpid()}")
    app.state.pool = f"pool of {os.getpid()}"
    yield {"region": "eu"}
    audit(f"lifespan ends {os.getpid()}")


app = FastAPI(
    title="depending",
    lifespan=celery.lifespan_with(lifespan, worker=bool(os.environ.get("EMBEDDED"))),
)
app.include_router(celery.router(insecure=True), prefix="/tasks")


class Session:
    """What endpoints and tasks share."""

    def __init__(self, pool: str, region: str) -> None:
        self.pool = pool
        self.region = region


async def get_session(request: Request) -> AsyncIterator[Session]:
    name = request.headers.get("x-name", "")
    audit(f"open {name}")
    try:
        yield Session(request.app.state.pool, request.state.region)
        audit(f"commit {name}")
    except Exception as exc:
        audit(f"rollback {name} {type(exc).__name__}")
        raise
    finally:
        audit(f"close {name}")


def get_client() -> Iterator[str]:
    yield "client"
    audit("close client")


SessionDependency = Annotated[Session, Depends(get_session)]


@celery.task
async def where(session: SessionDependency, client: Annotated[str, Depends(get_client)]) -> list[str]:
    return [session.pool, session.region, client]


@celery.task
def where_in_a_thread(session: SessionDependency, client: Annotated[str, Depends(get_client)]) -> list[str]:
    return [session.pool, session.region, client]


@celery.task
async def wait(seconds: float, session: SessionDependency) -> str:
    audit("running")
    await asyncio.sleep(seconds)
    return "done"


@celery.task
def wait_in_a_thread(seconds: float, session: SessionDependency) -> str:
    audit("running")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.05)
    return "done"


@celery.task(autoretry_for=(ConnectionError,), max_retries=2, retry_kwargs={"countdown": 0.1})
async def flaky(session: SessionDependency) -> str:
    if AUDIT.read_text().count("open flaky") < 3:  # noqa: ASYNC240
        raise ConnectionError("again")
    return "done"


@app.get("/where")
async def get_where(session: SessionDependency) -> str:
    """The same dependency, in a request."""
    return session.pool


@app.post("/where", status_code=202)
async def post_where() -> str:
    """Enqueue from a request."""
    return (await where.enqueue()).id  # type: ignore[call-arg]
