"""Protocol v1, and the hybrid of both, as protocol v2: the task's data is in the body instead of the headers.

See ``hybrid_to_proto2`` and ``proto1_to_proto2`` in :mod:`celery.worker.strategy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celeriac.errors import MalformedMessage

__all__ = ["upgrade"]

_HEADERS = (
    "lang",
    "task",
    "id",
    "root_id",
    "parent_id",
    "group",
    "group_index",
    "shadow",
    "eta",
    "expires",
    "retries",
    "timelimit",
    "argsrepr",
    "kwargsrepr",
    "origin",
)


def upgrade(
    headers: Mapping[str, Any], body: dict[str, Any]
) -> tuple[dict[str, Any], tuple[Any, Any, dict[str, Any]]]:
    """The v2 headers and the v2 body of a v1 message. What the message has as headers wins over its body."""
    if "task" not in body and "task" not in headers:
        raise MalformedMessage("The body is neither [args, kwargs, embed] nor a task of protocol v1.")
    upgraded = {name: body.get(name) for name in _HEADERS}
    if upgraded["group"] is None:
        upgraded["group"] = body.get("taskset")  # its name before groups
    upgraded.update(headers)
    embed = {name: body.get(name) for name in ("callbacks", "errbacks", "chord")}
    return upgraded, (body.get("args", ()), body.get("kwargs", {}), {**embed, "chain": None})
