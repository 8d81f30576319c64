from __future__ import annotations

from typing import Any

from fastapi import FastAPI


def operations(app: FastAPI) -> dict[tuple[str, str], Any]:
    return {
        (method, path): operation
        for path, methods in app.openapi()["paths"].items()
        for method, operation in methods.items()
    }


def app_with(celery: Any, **options: Any) -> FastAPI:
    app = FastAPI()
    app.include_router(celery.router(**options), prefix="/tasks")
    return app


async def test_every_answer_is_documented(celery: Any) -> None:
    documented = {
        key: sorted(operation["responses"])
        for key, operation in operations(app_with(celery, insecure=True)).items()
    }

    assert documented == {
        ("get", "/tasks"): ["200", "422", "503"],
        ("get", "/tasks/dead-letters"): ["200", "422", "503"],
        ("post", "/tasks/dead-letters/replay"): ["202", "422", "503"],
        ("get", "/tasks/{task_id}"): ["200", "404", "410", "422", "503"],
        ("get", "/tasks/{task_id}/result"): ["200", "202", "404", "409", "410", "422", "424", "503"],
        ("get", "/tasks/{task_id}/events"): ["200", "404", "410", "422", "503"],
        ("post", "/tasks/{task_id}/cancel"): ["202", "404", "410", "422", "503"],
        ("post", "/tasks/{task_id}/retry"): ["202", "404", "409", "410", "422", "503"],
        ("delete", "/tasks/{task_id}"): ["204", "404", "409", "410", "422", "503"],
    }


async def test_content_types_are_documented(celery: Any) -> None:
    found = operations(app_with(celery))

    events = found["get", "/tasks/{task_id}/events"]["responses"]
    assert list(events["200"]["content"]) == ["text/event-stream"]
    assert list(events["404"]["content"]) == ["application/problem+json"]
    result = found["get", "/tasks/{task_id}/result"]["responses"]
    assert result["202"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/TaskPending"
    }
    assert "Retry-After" in result["202"]["headers"]
    assert result["424"]["content"]["application/problem+json"]["schema"]["properties"]["exc_type"]
    parameters = {parameter["name"]: parameter["in"] for parameter in found["get", "/tasks"]["parameters"]}
    assert parameters == dict.fromkeys(
        ["state", "name", "queue", "since", "until", "search", "owner", "cursor", "limit"], "query"
    )


async def test_closed_commands_are_not_advertised(celery: Any) -> None:
    assert {method for method, _ in operations(app_with(celery))} == {"get"}


async def test_a_scoped_list_has_no_owner_to_ask_for(celery: Any) -> None:
    listing = operations(app_with(celery, owner=lambda: "ann"))["get", "/tasks"]

    assert "owner" not in {parameter["name"] for parameter in listing["parameters"]}


async def test_the_schema_of_a_record_has_a_traceback_only_where_it_is_shown(celery: Any) -> None:
    def properties(app: FastAPI) -> set[str]:
        answer = operations(app)["get", "/tasks/{task_id}"]["responses"]["200"]["content"]["application/json"]
        model = answer["schema"]["$ref"].rpartition("/")[2]
        return set(app.openapi()["components"]["schemas"][model]["properties"])

    assert "traceback" not in properties(app_with(celery))
    assert "traceback" in properties(app_with(celery, include_traceback=True))


async def test_operation_ids_are_stable_and_unique_with_two_routers(celery: Any) -> None:
    def app() -> FastAPI:
        app = app_with(celery)
        app.include_router(celery.router(insecure=True), prefix="/admin/tasks")
        return app

    ids = [operation["operationId"] for operation in operations(app()).values()]

    assert len(ids) == len(set(ids)) == 14
    assert "get_task_tasks__task_id__get" in ids
    assert ids == [operation["operationId"] for operation in operations(app()).values()]


async def test_the_schema_is_made_of_references_that_exist(celery: Any) -> None:
    schema = app_with(celery, insecure=True).openapi()

    def references(node: Any) -> set[str]:
        if isinstance(node, dict):
            own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
            return own.union(*map(references, node.values()))
        return set().union(*map(references, node)) if isinstance(node, list) else set()

    found = references(schema)
    assert found
    for reference in found:
        node = schema
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]
