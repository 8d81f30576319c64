"""Exposed tasks: their bodies, their answers, and who may call them."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Response
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, SecretStr, field_serializer

from celeriac import Celery, TaskContext
from celeriac.errors import BrokerUnavailable, ConfigurationError, PublishTimeout


class Order(BaseModel):
    """What to report on."""

    customer: Annotated[str, Field(min_length=1)]
    since: date | None = None


class Report(BaseModel):
    model_config = ConfigDict(serialize_by_alias=False)

    rows: Annotated[int, Field(alias="rowCount")]
    title: Annotated[str, Field(serialization_alias="reportTitle")] = ""


def exposing(celery: Celery, function: Any, path: str = "/reports", **options: Any) -> FastAPI:
    """An app with one exposed task under /tasks."""
    router = celery.router(**options.pop("router", {"insecure": True}))
    router.expose(celery.task(name=f"shop.{function.__name__}")(function), path, **options)
    app = FastAPI()
    app.include_router(router, prefix="/tasks")
    return app


async def build_report(
    customer: Annotated[str, Field(min_length=1, description="Whose rows.")],
    limit: Annotated[int, Field(ge=1, le=100)] = 10,
    since: date | None = None,
) -> Report:
    """Count the rows of a customer."""
    return Report(rowCount=limit)


async def test_a_post_enqueues_the_task_and_says_where_to_ask(client: Any, celery: Celery) -> None:
    http = client(exposing(celery, build_report))

    answer = await http.post("/tasks/reports", json={"customer": "ann", "since": "2026-01-02"})

    assert answer.status_code == 202
    body = answer.json()
    task_id = body["task_id"]
    assert body == {
        "task_id": task_id,
        "state": "PENDING",
        "links": {
            "status": f"/tasks/reports/{task_id}",
            "events": f"/tasks/{task_id}/events",
            "cancel": f"/tasks/{task_id}/cancel",
        },
    }
    assert answer.headers["location"] == f"/tasks/reports/{task_id}"
    assert int(answer.headers["retry-after"]) > 0
    record = (await celery.store.get([task_id]))[task_id]
    assert (record.name, record.args) == ("shop.build_report", [])
    assert record.kwargs == {"customer": "ann", "since": "2026-01-02"}  # what was left out is still left out
    assert await celery.queue_size("celery") == 1


async def test_links_lead_somewhere(client: Any, celery: Celery) -> None:
    http = client(exposing(celery, build_report))
    links = (await http.post("/tasks/reports", json={"customer": "ann"})).json()["links"]

    assert (await http.get(links["status"])).status_code == 202
    assert (await http.post(links["cancel"])).status_code == 202
    assert (await http.get(links["events"])).status_code == 200
    assert (await http.get(links["status"])).status_code == 409


@pytest.mark.parametrize(
    ("body", "loc", "kind"),
    [
        ({}, ["body", "customer"], "missing"),
        ({"customer": ""}, ["body", "customer"], "string_too_short"),
        ({"customer": "ann", "limit": 0}, ["body", "limit"], "greater_than_equal"),
        ({"customer": "ann", "since": "soon"}, ["body", "since"], "date_from_datetime_parsing"),
        ({"customer": "ann", "colour": "red"}, ["body", "colour"], "extra_forbidden"),
        ([], ["body"], "model_attributes_type"),
    ],
)
async def test_what_does_not_fit_is_fastapis_422(
    client: Any, celery: Celery, body: Any, loc: list[str], kind: str
) -> None:
    answer = await client(exposing(celery, build_report)).post("/tasks/reports", json=body)

    assert answer.status_code == 422
    (error,) = answer.json()["detail"]
    assert (error["loc"], error["type"]) == (loc, kind)
    assert error["msg"]
    assert await celery.queue_size("celery") == 0


@pytest.mark.parametrize(
    ("body", "loc", "kind"),
    [
        ('{"customer": NaN}', ["body", "customer"], "string_type"),
        ('{"customer": "a", "limit": Infinity}', ["body", "limit"], "finite_number"),
        ('{"customer": ["\\ud800"]}', ["body", "customer"], "string_type"),
        ('{"customer": "\\ud800"}', ["body"], "string_unicode"),
        ('{"customer": "a", "\\ud800": 1}', ["body"], "string_unicode"),
        ('{"customer": "a", "more": ' + "[" * 200 + "]" * 200 + "}", ["body"], "too_deep"),
    ],
)
async def test_what_json_cannot_say_again_is_a_422_too(
    client: Any, celery: Celery, body: str, loc: list[str], kind: str
) -> None:
    async def report_on(customer: str, limit: int = 1, more: Any = None) -> None: ...

    headers = {"Content-Type": "application/json"}
    http = client(exposing(celery, report_on))

    answer = await http.post("/tasks/reports", content=body, headers=headers)

    assert answer.status_code == 422
    (error,) = answer.json()["detail"]
    assert (error["loc"], error["type"]) == (loc, kind)
    assert (await http.get("/tasks")).json()["items"] == []


async def test_a_single_model_is_the_body(client: Any, celery: Celery) -> None:
    async def report_on(order: Order) -> int:
        return 1

    app = exposing(celery, report_on)
    http = client(app)

    accepted = await http.post("/tasks/reports", json={"customer": "ann", "since": "2026-01-02"})
    refused = await http.post("/tasks/reports", json={"customer": ""})

    record = (await celery.store.get([accepted.json()["task_id"]])).popitem()[1]
    assert record.kwargs == {"order": {"customer": "ann", "since": "2026-01-02"}}
    assert refused.json()["detail"][0]["loc"] == ["body", "customer"]
    body = app.openapi()["paths"]["/tasks/reports"]["post"]["requestBody"]
    assert body["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Order"}


async def test_a_model_among_others_is_a_field(client: Any, celery: Celery) -> None:
    async def report_on(order: Order, *, copies: int = 1) -> int:
        return 1

    http = client(exposing(celery, report_on))

    answer = await http.post("/tasks/reports", json={"order": {"customer": ""}})

    assert answer.json()["detail"][0]["loc"] == ["body", "order", "customer"]


async def test_positional_only_and_keyword_only_parameters_are_fields(client: Any, celery: Celery) -> None:
    async def total(first: int, second: int = 2, third: int = 3, /, *, fourth: int) -> int:
        return first + second + third + fourth

    http = client(exposing(celery, total))

    short = await http.post("/tasks/reports", json={"first": 1, "fourth": 4})
    gap = await http.post("/tasks/reports", json={"first": 1, "third": 5, "fourth": 4})

    records = [(await celery.store.get([each.json()["task_id"]])).popitem()[1] for each in (short, gap)]
    assert [(record.args, record.kwargs) for record in records] == [
        ([1], {"fourth": 4}),
        ([1, 2, 5], {"fourth": 4}),
    ]


async def test_parameters_may_have_names_that_a_model_could_not(client: Any, celery: Celery) -> None:
    async def awkward(schema: int, model_config: str, _hidden: int, self: str, json: bool = True) -> None: ...

    app = exposing(celery, awkward)
    given = {"schema": 1, "model_config": "x", "_hidden": 2, "self": "y"}

    answer = await client(app).post("/tasks/reports", json=given)

    assert (await celery.store.get([answer.json()["task_id"]])).popitem()[1].kwargs == given
    schema = app.openapi()["components"]["schemas"]["AwkwardArguments"]
    assert list(schema["properties"]) == ["schema", "model_config", "_hidden", "self", "json"]


async def test_injected_parameters_and_self_are_no_part_of_the_body(client: Any, celery: Celery) -> None:
    async def reports(self: Any, context: TaskContext, customer: str) -> None: ...

    router = celery.router(insecure=True)
    router.expose(celery.task(bind=True)(reports), "/reports")
    app = FastAPI()
    app.include_router(router, prefix="/tasks")

    assert list(app.openapi()["components"]["schemas"]["ReportsArguments"]["properties"]) == ["customer"]
    assert (await client(app).post("/tasks/reports", json={"customer": "ann"})).status_code == 202


async def test_a_task_without_arguments_has_no_body(client: Any, celery: Celery) -> None:
    async def tidy() -> None: ...

    app = exposing(celery, tidy)

    assert (await client(app).post("/tasks/reports")).status_code == 202
    assert "requestBody" not in app.openapi()["paths"]["/tasks/reports"]["post"]


async def test_a_body_may_be_left_out_where_nothing_in_it_is_required(client: Any, celery: Celery) -> None:
    async def tidy(days: int = 7) -> None: ...

    http = client(exposing(celery, tidy))

    answer = await http.post("/tasks/reports")

    assert (await celery.store.get([answer.json()["task_id"]])).popitem()[1].kwargs == {}
    assert (await http.post("/tasks/reports", json={"days": "x"})).status_code == 422


class Session:
    """What no JSON can be."""


class Login(BaseModel):
    password: SecretStr


class Logins(BaseModel):
    logins: dict[str, Login]
    again: Logins | None = None


class Said(BaseModel):
    password: SecretStr
    pin: Annotated[SecretStr, PlainSerializer(lambda it: it.get_secret_value())]

    @field_serializer("password")
    def say(self, password: SecretStr) -> str:
        return password.get_secret_value()


async def unlock(said: Said) -> None: ...


async def test_a_model_that_says_how_its_secrets_are_written_is_taken(client: Any, celery: Celery) -> None:
    http = client(exposing(celery, unlock))

    accepted = await http.post("/tasks/reports", json={"password": "a", "pin": "1"})

    record = (await celery.store.get([accepted.json()["task_id"]])).popitem()[1]
    assert record.kwargs == {"said": {"password": "a", "pin": "1"}}


async def variadic(*names: str) -> None: ...
async def open_ended(**options: str) -> None: ...
async def opaque(session: Session) -> None: ...
async def secretive(password: SecretStr | None = None) -> None: ...
async def hiding(who: Login, more: Login | None = None) -> None: ...
async def deeply_hiding(all_of_them: list[Logins]) -> None: ...
async def defaulting(days: int = Field(3, gt=1)) -> None: ...
async def making(rows: Annotated[list[int], Field(default_factory=list)]) -> None: ...
async def unresolved(later: Later) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (variadic, r"parameter \*names has no place in a (JSON )?body; take a list"),
        (open_ended, r"parameter \*\*options has no place in a (JSON )?body"),
        (opaque, r"parameter session is of a type that no JSON describes .*make it a dependency"),
        (secretive, r"parameter password is a secret"),
        (hiding, r"parameter who is a secret or has one in it"),
        (deeply_hiding, r"parameter all_of_them is a secret or has one in it"),
        (defaulting, r"parameter days has its default inside of a Field.*write it after the ="),
        (making, r"parameter rows has its default inside of a Field"),
        (unresolved, r"parameter later is annotated with 'Later', which cannot be resolved"),
    ],
)
async def test_what_no_body_can_fill_is_refused_at_once(celery: Celery, function: Any, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        exposing(celery, function)


@pytest.mark.parametrize("path", ["", "/", "reports"])
async def test_a_path_is_needed(celery: Celery, path: str) -> None:
    with pytest.raises(ConfigurationError, match="give it a path like"):
        exposing(celery, build_report, path)


async def test_only_tasks_are_exposed(celery: Celery) -> None:
    with pytest.raises(ConfigurationError, match="expose takes a task"):
        celery.router(insecure=True).expose(build_report, "/reports")  # type: ignore[arg-type]


# -- how it stands -----------------------------------------------------------------------------------------------


async def test_the_result_is_in_the_tasks_own_type(client: Any, celery: Celery, feed: Any) -> None:
    app = exposing(celery, build_report)
    await feed.started(name="shop.build_report")
    await feed.progressed("t1", '{"current": 1, "total": 2, "note": ""}')
    http = client(app)

    running = await http.get("/tasks/reports/t1")
    await feed.succeeded(result='{"rows": 3, "title": "Q1"}')
    finished = await http.get("/tasks/reports/t1")

    assert running.status_code == 202
    assert int(running.headers["retry-after"]) > 0
    assert running.json() == {
        "task_id": "t1",
        "state": "STARTED",
        "progress": {"current": 1.0, "total": 2.0, "note": ""},
        "result": None,
        "error": None,
    }
    assert finished.status_code == 200
    assert finished.json()["result"] == {"rowCount": 3, "reportTitle": "Q1"}
    assert "retry-after" not in finished.headers
    assert finished.headers["cache-control"] == "no-store"

    schema = app.openapi()
    answers = schema["paths"]["/tasks/reports/{task_id}"]["get"]["responses"]
    for status in ("200", "202"):
        reference = answers[status]["content"]["application/json"]["schema"]["$ref"]
        assert reference == "#/components/schemas/TaskStatus_Report_"
    result = schema["components"]["schemas"]["TaskStatus_Report_"]["properties"]["result"]
    assert {"$ref": "#/components/schemas/Report"} in result["anyOf"]
    assert "reportTitle" in schema["components"]["schemas"]["Report"]["properties"]


async def test_a_result_that_does_not_fit_any_more_is_shown_as_it_is(
    client: Any, celery: Celery, feed: Any
) -> None:
    await feed.started(name="shop.build_report")
    await feed.succeeded(result='{"lines": 3, "share": NaN}')

    answer = await client(exposing(celery, build_report)).get("/tasks/reports/t1")

    assert answer.status_code == 200
    assert answer.json()["result"] == {"lines": 3, "share": None}


async def test_a_task_that_ended_badly_is_a_problem(client: Any, celery: Celery, feed: Any) -> None:
    http = client(exposing(celery, build_report))
    await feed.started(name="shop.build_report")
    await feed.failed()
    await feed.enqueued("t2", name="shop.build_report")
    await celery.handle("t2").cancel()

    failed, revoked = await http.get("/tasks/reports/t1"), await http.get("/tasks/reports/t2")

    assert (failed.status_code, revoked.status_code) == (424, 409)
    assert failed.headers["content-type"] == revoked.headers["content-type"] == "application/problem+json"
    assert failed.json()["exc_type"] == "ValueError"


async def test_other_tasks_are_unknown_under_its_path(client: Any, celery: Celery, feed: Any) -> None:
    await feed.enqueued(name="shop.add")
    http = client(exposing(celery, build_report))

    other, unknown = await http.get("/tasks/reports/t1"), await http.get("/tasks/reports/t0")

    assert other.status_code == unknown.status_code == 404
    assert other.text.replace("t1", "t0") == unknown.text


# -- where it stands ---------------------------------------------------------------------------------------------


async def test_without_records_there_is_what_is_exposed_and_nothing_else(client: Any, celery: Celery) -> None:
    router = celery.router(insecure=True, records=False)
    router.expose(celery.task(name="shop.build_report")(build_report), "/reports")
    app = FastAPI()
    app.include_router(router)

    answer = await client(app).post("/reports", json={"customer": "ann"})

    task_id = answer.json()["task_id"]
    assert answer.json()["links"] == {"status": f"/reports/{task_id}", "events": None, "cancel": None}
    assert sorted(app.openapi()["paths"]) == ["/reports", "/reports/{task_id}"]
    app.include_router(celery.router(insecure=True), prefix="/tasks")
    links = (await client(app).post("/reports", json={"customer": "ann"})).json()["links"]
    assert links["events"].startswith("/tasks/")
    assert links["cancel"].endswith("/cancel")


async def test_closed_commands_are_not_linked(client: Any, celery: Celery) -> None:
    app = exposing(celery, build_report, router={}, insecure=True)

    links = (await client(app).post("/tasks/reports", json={"customer": "ann"})).json()["links"]

    assert links["cancel"] is None
    assert links["events"] is not None


@pytest.mark.parametrize("path", ["/reports", "/reports/", "/a/b", "/{tenant}/reports", "/orders/cancel"])
async def test_links_hold_under_prefixes_mounts_and_parameters(
    client: Any, celery: Celery, path: str
) -> None:
    router = celery.router(insecure=True)
    router.expose(celery.task(name="shop.build_report")(build_report), path)
    outer = APIRouter(prefix="/v1/{region}")
    outer.include_router(router, prefix="/tasks")
    inner = FastAPI()
    inner.include_router(outer)
    inner.include_router(router, prefix="/again")
    app = FastAPI()
    app.mount("/sub", inner)
    http = client(app)
    path = path.format(tenant="a b")

    for base in ("/sub/v1/eu%20west/tasks", "/sub/again"):
        answer = await http.post(f"{base}{path}", json={"customer": "ann"})
        links = answer.json()["links"]
        assert answer.headers["location"].startswith(f"{base}{path.rstrip('/').replace(' ', '%20')}/")
        assert (await http.get(answer.headers["location"])).status_code == 202
        assert links["events"] == f"{base}/{answer.json()['task_id']}/events"
        assert (await http.post(links["cancel"])).status_code == 202


@pytest.mark.parametrize("stripped", [True, False])
async def test_links_hold_behind_a_proxy(celery: Celery, stripped: bool) -> None:
    import httpx

    app = exposing(celery, build_report)
    app.root_path = "/api"
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        path = "/tasks/reports" if stripped else "/api/tasks/reports"
        answer = await http.post(path, json={"customer": "ann"})

    assert answer.headers["location"] == f"/api/tasks/reports/{answer.json()['task_id']}"


# -- who may -----------------------------------------------------------------------------------------------------


async def user(x_user: Annotated[str, Header()]) -> str:
    return x_user


ANN, BOB = {"X-User": "ann"}, {"X-User": "bob"}


@pytest.mark.parametrize("router", [{}, {"dependencies": []}])
@pytest.mark.parametrize("options", [{}, {"dependencies": []}])
async def test_nothing_is_exposed_to_nobody_in_particular(celery: Celery, router: Any, options: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"dependencies=.*owner=Depends.*insecure=True"):
        exposing(celery, build_report, router=router, **options)


@pytest.mark.parametrize("where", ["router", "expose"])
async def test_the_owner_gets_the_task_and_nobody_else_sees_it(
    client: Any, celery: Celery, where: str
) -> None:
    owner = {"owner": Depends(user)}
    app = exposing(
        celery, build_report, **({"router": owner} if where == "router" else {"router": {}, **owner})
    )
    http = client(app)

    answer = await http.post("/tasks/reports", json={"customer": "x"}, headers=ANN)
    location = answer.headers["location"]

    assert (await celery.store.get([answer.json()["task_id"]])).popitem()[1].owner == "ann"
    assert (await http.get(location, headers=ANN)).status_code == 202
    assert (await http.get(location, headers=BOB)).status_code == 404
    assert (await http.post("/tasks/reports", json={"customer": "x"})).status_code == 422


async def test_dependencies_guard_both_routes(client: Any, celery: Celery, feed: Any) -> None:
    await feed.enqueued(name="shop.build_report")

    def closed() -> None:
        raise HTTPException(401)

    http = client(exposing(celery, build_report, router={}, dependencies=[Depends(closed)]))

    assert (await http.post("/tasks/reports", json={"customer": "x"})).status_code == 401
    assert (await http.get("/tasks/reports/t1")).status_code == 401
    assert await celery.queue_size("celery") == 0


# -- options -----------------------------------------------------------------------------------------------------


async def test_options_are_those_of_every_call(client: Any, celery: Celery) -> None:
    app = exposing(celery, build_report, options={"queue": "slow", "countdown": 60, "priority": 3})

    answer = await client(app).post("/tasks/reports", json={"customer": "ann"})

    record = (await celery.store.get([answer.json()["task_id"]])).popitem()[1]
    assert record.queue == "slow"
    assert record.eta is not None


@pytest.mark.parametrize("option", ["task_id", "owner"])
async def test_what_differs_between_calls_is_no_option(celery: Celery, option: str) -> None:
    with pytest.raises(ConfigurationError, match=option):
        exposing(celery, build_report, options={option: "x"})


async def test_headers_of_dependencies_are_in_the_answers(client: Any, celery: Celery) -> None:
    async def cookies(response: Response) -> None:
        response.set_cookie("a", "1")
        response.headers["X-Limit"] = "9"

    http = client(exposing(celery, build_report, dependencies=[Depends(cookies)]))

    answer = await http.post("/tasks/reports", json={"customer": "ann"})
    status = await http.get(answer.headers["location"])

    for each in (answer, status):
        assert each.headers["x-limit"] == "9"
        assert each.cookies["a"] == "1"


async def test_the_document_says_what_fastapi_users_expect(celery: Celery) -> None:
    app = exposing(
        celery,
        build_report,
        name="make_report",
        tags=["reports"],
        summary="Make it",
        responses={418: {"description": "A teapot"}},
        deprecated=True,
    )

    paths = app.openapi()["paths"]
    post, get = paths["/tasks/reports"]["post"], paths["/tasks/reports/{task_id}"]["get"]

    assert post["operationId"] == "make_report_tasks_reports_post"
    assert get["operationId"] == "get_make_report_tasks_reports__task_id__get"
    assert post["tags"] == ["tasks", "reports"]
    assert (post["summary"], post["description"]) == ("Make it", "Count the rows of a customer.")
    assert post["deprecated"] is True
    assert sorted(post["responses"]) == ["202", "409", "418", "422", "503"]
    assert sorted(post["responses"]["202"]["headers"]) == ["Idempotency-Replayed", "Location", "Retry-After"]
    assert sorted(get["responses"]) == ["200", "202", "404", "409", "410", "422", "424", "503"]
    fields = app.openapi()["components"]["schemas"]["MakeReportArguments"]
    assert fields["required"] == ["customer"]
    assert fields["properties"]["customer"]["description"] == "Whose rows."
    assert fields["properties"]["limit"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 100,
        "default": 10,
        "title": "Limit",
    }


async def test_operation_ids_follow_the_apps_own_way(celery: Celery) -> None:
    router = celery.router(insecure=True)
    router.expose(celery.task(name="shop.build_report")(build_report), "/reports")
    router.expose(celery.tasks["shop.add"], "/sums")
    app = FastAPI(generate_unique_id_function=lambda route: f"{route.tags[0]}-{route.name}")
    app.include_router(router, prefix="/tasks")

    ids = [each["operationId"] for methods in app.openapi()["paths"].values() for each in methods.values()]

    assert len(ids) == len(set(ids))
    assert {"tasks-build_report", "tasks-get_build_report", "tasks-add", "tasks-get_add"} <= set(ids)


@pytest.mark.parametrize("error", [BrokerUnavailable, PublishTimeout])
async def test_a_broker_that_is_gone_asks_to_come_back(
    client: Any, celery: Celery, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(*_: Any) -> None:
        raise error

    monkeypatch.setattr(celery.broker, "publish", gone)

    answer = await client(exposing(celery, build_report)).post("/tasks/reports", json={"customer": "ann"})

    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0


async def test_a_task_that_is_exposed_twice_has_one_model_of_its_arguments(celery: Celery) -> None:
    task = celery.task(name="shop.build_report")(build_report)
    app = FastAPI()
    for prefix in ("/public", "/admin"):
        router = celery.router(insecure=True, records=False)
        router.expose(task, "/reports")
        router.expose(task, "/big-reports", name="big-report")
        app.include_router(router, prefix=prefix)

    models = {name for name in app.openapi()["components"]["schemas"] if "Arguments" in name}

    assert models == {"BuildReportArguments", "BigReportArguments"}
