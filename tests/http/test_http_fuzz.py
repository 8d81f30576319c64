"""Whatever is sent to the routes, the answer is one that the OpenAPI document has."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.quickstart import SOURCE
from tests.http.conftest import Shop, serving
from tests.http.fuzzing import MODES, fuzz, operations_of
from tests.http.shop import app

OPERATIONS = {
    label: operation
    for label, operation in operations_of(app.openapi()).items()
    if "/looks" not in label or label.endswith("}")  # the same as the others, but for the traceback
}


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """The shop on SQLite."""
    folder = tmp_path_factory.mktemp("shop")
    with serving(folder, f"sqlite:///{folder / 'celery.db'}") as shop:
        yield shop


@pytest.fixture(scope="module")
def ended(fuzzed: Shop) -> list[str]:
    """Tasks that have ended in each way, with texts in them that are hard to carry."""
    odd = fuzzed.ended(fuzzed.enqueue("fail", "\x00 \ud83d '\"\\%_"), "FAILURE")
    spoken = fuzzed.ended(fuzzed.enqueue("speak", "to be"), "SUCCESS")
    expired = fuzzed.expired()
    return [fuzzed.succeeded(), fuzzed.failed(), fuzzed.revoked(), expired, odd, spoken]


@pytest.fixture(scope="module")
def again(fuzzed: Shop) -> list[str]:
    """Tasks that have ended and may run again, and one that must not."""
    return [fuzzed.succeeded(), fuzzed.failed(), fuzzed.revoked(), fuzzed.waiting()]


@pytest.fixture(scope="module")
def unfinished(fuzzed: Shop) -> list[str]:
    """Tasks that wait, run, and are tried again later."""
    again = fuzzed.until(fuzzed.enqueue("fail_for_now"), "RETRY")
    return [fuzzed.waiting(), fuzzed.enqueue("add", 1, 2, countdown=3600), fuzzed.running()[0], again]


@pytest.mark.parametrize("mode", MODES, ids=[mode.value for mode in MODES])
@pytest.mark.parametrize("label", OPERATIONS)
def test_the_shop_answers_as_documented(
    fuzzed: Shop, ended: list[str], unfinished: list[str], again: list[str], label: str, mode: Any
) -> None:
    def ids(label: str) -> Sequence[str]:
        if label.startswith("DELETE"):
            return [fuzzed.succeeded(), fuzzed.waiting()]
        if label.endswith("/retry"):
            return again
        # The events of a task that has not finished go on until it has.
        if "/mine" in label or label.endswith("/events"):
            return ended
        return [*ended, *unfinished]

    url = str(fuzzed.http.base_url)
    fuzz(OPERATIONS[label], mode, url, ids, {"X-User": "ann"} if "/mine" in label else {})


@pytest.mark.parametrize("mode", MODES, ids=[mode.value for mode in MODES])
def test_the_quickstart_answers_as_documented(tmp_path: Path, mode: Any) -> None:
    folder = tmp_path / "quickstart"
    shutil.copytree(
        SOURCE,
        folder,
        ignore=shutil.ignore_patterns("__pycache__", "outbox", "*.db*", "celerybeat-schedule*"),
    )
    with serving(folder, "sqlite:///celery.db", "main:app") as quickstart:
        document = quickstart.http.get("/openapi.json").json()
        body = {"user_id": 1, "payload": "a,b\n1,2"}
        ended, again, waiting = (
            quickstart.http.post("/process-data", json=body).json()["task_id"] for _ in range(3)
        )
        for task_id in (ended, again):
            assert quickstart.http.post(f"/tasks/{task_id}/cancel").json()["cancelled"]

        def ids(label: str) -> Sequence[str]:
            if label.endswith("/retry") or label.startswith("DELETE"):
                return [again]
            return [ended] if label.endswith("/events") else [ended, waiting]

        for operation in operations_of(document).values():
            fuzz(operation, mode, str(quickstart.http.base_url), ids, {})
