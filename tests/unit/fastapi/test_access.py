from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

import pytest
from fastapi import Depends, FastAPI, Header, HTTPException


async def user(x_user: Annotated[str, Header()]) -> str:
    return x_user


ANN, BOB = {"X-User": "ann"}, {"X-User": "bob"}


async def test_everybody_lists_their_own_tasks_alone(client: Any, feed: Any) -> None:
    for number, owner in enumerate(["ann", "bob", None, "ann"]):
        await feed.enqueued(f"t{number}", owner=owner)
    http = client(owner=Depends(user))

    ann = (await http.get("/tasks", headers=ANN)).json()
    bob = (await http.get("/tasks", headers=BOB, params={"owner": "ann"})).json()

    assert [item["id"] for item in ann["items"]] == ["t3", "t0"]
    assert [item["id"] for item in bob["items"]] == ["t1"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("GET", "/result?wait=5"), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/retry")],
)
@pytest.mark.parametrize("owner", ["bob", None])
async def test_other_peoples_ids_are_unknown(
    client: Any, feed: Any, method: str, path: str, owner: str | None
) -> None:
    await feed.enqueued(owner=owner)
    http = client(owner=Depends(user))

    theirs = await http.request(method, f"/tasks/t1{path}", headers=ANN)
    nothing = await http.request(method, f"/tasks/t0{path}", headers=ANN)

    assert theirs.status_code == nothing.status_code == 404
    assert theirs.text.replace("t1", "t0") == nothing.text
    assert (await feed.store.get(["t1"]))["t1"].state == "PENDING"


async def test_ones_own_task_is_there(client: Any, feed: Any) -> None:
    await feed.enqueued(owner="ann")
    http = client(owner=user)

    assert (await http.get("/tasks/t1", headers=ANN)).status_code == 200
    assert (await http.post("/tasks/t1/cancel", headers=ANN)).status_code == 202


@pytest.mark.parametrize(
    ("given", "kept"),
    [(7, "7"), (UUID(int=1), "00000000-0000-0000-0000-000000000001")],
)
async def test_an_owner_may_be_a_number_or_a_uuid(client: Any, feed: Any, given: Any, kept: str) -> None:
    await feed.enqueued(owner=kept)
    await feed.enqueued("t2", owner="8")

    page = (await client(owner=lambda: given).get("/tasks")).json()

    assert [item["id"] for item in page["items"]] == ["t1"]


@pytest.mark.parametrize("given", [None, "", object(), True])
async def test_a_caller_without_a_name_is_an_error_and_not_everybody(
    client: Any, feed: Any, given: Any
) -> None:
    await feed.enqueued()

    with pytest.raises(TypeError, match="owner="):
        await client(owner=lambda: given).get("/tasks")


@pytest.mark.parametrize("path", ["", "/t1", "/t1/result", "/t1/events"])
async def test_dependencies_guard_every_route(client: Any, feed: Any, path: str) -> None:
    await feed.enqueued()

    def admin() -> None:
        raise HTTPException(401)

    http = client(dependencies=[Depends(admin)])

    assert (await http.get(f"/tasks{path}")).status_code == 401
    assert (await http.post("/tasks/t1/cancel")).status_code == 401


async def test_the_owner_can_be_overridden_like_any_dependency(client: Any, celery: Any, feed: Any) -> None:
    await feed.enqueued(owner="ann")
    app = FastAPI()
    app.include_router(celery.router(owner=Depends(user)), prefix="/tasks")
    app.dependency_overrides[user] = lambda: "ann"

    assert (await client(app).get("/tasks/t1")).status_code == 200
