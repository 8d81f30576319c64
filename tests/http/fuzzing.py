"""Requests made up from an app's own OpenAPI document, and what must hold of each answer.

``FUZZ_EXAMPLES`` is how many of each kind are tried for each route; with more than a few, this takes its time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import (
    negative_data_rejection,
    positive_data_acceptance,
    response_schema_conformance,
)

__all__ = ["EXAMPLES", "MODES", "Ids", "fuzz", "operations_of"]

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "15"))

MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)

#: How FastAPI answers, with 400, a body that is not even text, or a form; no document of its has that.
_NOT_READ = b'{"detail":"'

#: Seconds for one answer.
_PATIENCE = 20.0

#: Seconds that ``?wait=`` may hold a request here.
_WAIT = 0.05

#: The ids of tasks that an operation, ``"GET /tasks/{task_id}"``, is tried with.
Ids = Callable[[str], Sequence[str]]


def operations_of(document: dict[str, Any]) -> dict[str, Any]:
    """The operations of an OpenAPI document, by method and path."""
    schema = schemathesis.openapi.from_dict(document)
    found = [result.ok() for result in schema.get_all_operations()]
    return {operation.label: operation for operation in found}


def fuzz(operation: Any, mode: GenerationMode, url: str, ids: Ids, headers: dict[str, str]) -> None:
    """Make requests, and hold each answer against the document: status, media type, headers, body; and no 5xx."""
    known = ids(operation.label)
    session = requests.Session()
    # The document cannot say which texts are cursors, ids of events, or names of fields in a form; and it does not say
    # that pydantic takes true for 1.
    excluded = [positive_data_acceptance, negative_data_rejection]
    if operation.path.endswith("/events"):
        excluded.append(
            response_schema_conformance
        )  # a stream is a text, there; and a list of events, to the check

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), place=st.integers(0, 2 * len(known)))
    def attempt(case: Case, place: int) -> None:
        # Made-up ids are unknown; most requests should get further than that.
        if known and "task_id" in case.path_parameters and place < 2 * len(known):
            case.path_parameters["task_id"] = known[place % len(known)]
        _shorten(case)
        response = case.call(base_url=url, session=session, headers=headers, timeout=_PATIENCE)
        if response.status_code != 400 or not response.content.startswith(_NOT_READ):
            case.validate_response(response, excluded_checks=excluded)

    with (
        session,
        contextlib.suppress(Unsatisfiable),
    ):  # by an operation that takes nothing that could be wrong
        attempt()


def _shorten(case: Case) -> None:
    wait = case.query.get("wait")
    if isinstance(wait, (int, float)) and _WAIT < wait <= 60:
        case.query["wait"] = _WAIT
