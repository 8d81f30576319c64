"""``docs/endpoints.md``: its code makes the app that it says it makes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[3] / "docs" / "endpoints.md"


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each block of code has defined, with what those before it have."""
    monkeypatch.setenv("CELERY_BROKER_URL", f"sqlite:///{tmp_path}/celery.db")
    names: dict[str, Any] = {"__name__": "shop"}
    defined = []
    for block in re.findall(r"^```python\n(.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(DOCS), "exec"), names)
        defined.append(dict(names))
    return defined


async def test_the_code_in_the_documentation_works(client: Any, page: list[dict[str, Any]]) -> None:
    exposed, owned = page
    celery, headers = exposed["celery"], {"X-User": "ann"}
    async with celery:
        http = client(exposed["app"])
        answer = await http.post("/tasks/reports", json={"customer": "acme"}, headers=headers)
        status = await http.get(answer.headers["location"], headers=headers)
        of_route = await client(owned["app"]).post("/nightly", headers=headers)
        ids = [answer.json()["task_id"], of_route.json()]
        owners = [(await celery.handle(task_id).record()).owner for task_id in ids]

    assert (answer.status_code, status.status_code, of_route.status_code) == (202, 202, 202)
    assert owners == ["ann", "ann"]
    document = exposed["app"].openapi()
    assert "TaskStatus_Report_" in document["components"]["schemas"]
    assert document["paths"]["/tasks/reports"]["post"]["operationId"] == "build_report_tasks_reports_post"
