"""celeriac's pytest plugin: the fixture ``celery_in_memory`` and the mark ``celeriac``.

A package of its own, because pytest imports it in every project: ``celeriac`` is imported when the fixture is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from celeriac.testing import InMemory

__all__ = ["celery_in_memory"]


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line(
        "markers",
        "celeriac(**options): options of celery_in_memory for this test: mode, raise_errors, timeout, schedule, …",
    )


@pytest.fixture
def celery_in_memory(request: pytest.FixtureRequest) -> Callable[..., InMemory]:
    """``celeriac.testing.in_memory``, with the options of the test's ``@pytest.mark.celeriac(…)``.

    The tracebacks of tasks that fail are part of the report of a test that fails.
    """
    from celeriac.testing import in_memory

    node = request.node
    mark = node.get_closest_marker("celeriac")
    marked = {} if mark is None else mark.kwargs

    def make(celery: Any, **options: Any) -> InMemory:
        memory = in_memory(celery, **{**options, **marked})
        memory.report_failures(lambda text: node.add_report_section("call", "failed tasks", text))
        return memory

    return make
