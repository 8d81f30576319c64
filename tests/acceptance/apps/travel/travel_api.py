"""The API, which knows the workers' tasks by stubs."""

from __future__ import annotations

import sys
from typing import Any

from celery import chain, chord, group
from fastapi import FastAPI, Header
from travel_context import tenant

from celeriac import Celery, TaskRouter

celery = Celery("api")
celery.conf.celeriac_propagate = ["travel_context:tenant"]

Seen = list[str | None]
stubs = TaskRouter(prefix="travel.")


@stubs.stub()
async def look(*_: Any) -> Seen:
    raise NotImplementedError


@stubs.stub()
async def pass_on(before: list[Seen]) -> list[Seen]:
    raise NotImplementedError


celery.include_router(stubs)


async def user(x_user: str = Header()) -> str:
    return x_user


app = FastAPI(lifespan=celery.lifespan)
celery.install(app)


def canvas(queues: list[str]) -> dict[str, Any]:
    """Canvas by name, whose parts take turns in the queues."""
    first, second = queues[0], queues[-1]

    def at(queue: str, stub: Any) -> Any:
        return stub.s().set(queue=queue)

    looks = [at(first, look), at(second, look)]
    return {
        "chain": chain(at(first, look), at(second, look), at(first, look), at(second, look)),
        "group": group(looks),
        "chord": chord(looks, at(second, pass_on)),
        "chord in a chain": chain(at(second, look), group(looks), at(first, pass_on)),
    }


@app.post("/canvas", dependencies=[celery.owned_by(user)])
async def post_canvas(kind: str, queues: str = "celery", x_tenant: str = Header()) -> list[Any]:
    """Run canvas, and answer with what its end has seen."""
    tenant.set(x_tenant)
    handle = await celery.enqueue(canvas(queues.split(","))[kind])
    return await handle.result(30)


@app.post("/task/{name}", dependencies=[celery.owned_by(user)])
async def post_task(name: str, x_tenant: str = Header(), queue: str = "celery") -> dict[str, Any]:
    """Run a task by name."""
    tenant.set(x_tenant)
    handle = await celery.enqueue(f"travel.{name}", queue=queue)
    return {"id": handle.id, "result": await handle.result(30)}


@app.post("/thread", dependencies=[celery.owned_by(user)])
def post_from_thread(x_tenant: str = Header()) -> str:
    """Publish by Celery's own code, which a thread may."""
    tenant.set(x_tenant)
    return str(look.delay().id)


@app.post("/blocking", dependencies=[celery.owned_by(user)])
async def post_blocking(x_tenant: str = Header()) -> str:
    """What one should not do."""
    tenant.set(x_tenant)
    return str(look.delay().id)


@app.get("/modules")
async def modules() -> list[str]:
    """Which of the workers' modules this process has imported."""
    return sorted({"travel_tasks", "travel_worker"} & set(sys.modules))
