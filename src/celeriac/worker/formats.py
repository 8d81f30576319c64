"""The worker's logging: Celery's, with ``%(request_id)s`` for the settings ``worker_log_format`` and
``worker_task_log_format``."""

from __future__ import annotations

import logging
from typing import Any

from celery.app.log import Logging as CeleryLogging
from celery.app.log import TaskFormatter
from celery.utils.log import ColorFormatter

from celeriac.propagation import request_id

__all__ = ["Logging"]


class _NamesRequest(logging.Formatter):
    """Gives each record the id of the request that the code which logged belongs to, or ``-``."""

    def format(self, record: logging.LogRecord) -> str:
        if not getattr(record, "request_id", None):
            record.request_id = request_id.get() or "-"
        return super().format(record)


class _Line(_NamesRequest, ColorFormatter):  # type: ignore[misc]
    """A line of anybody's."""


class _TaskLine(_NamesRequest, TaskFormatter):  # type: ignore[misc]
    """A line of a task's."""


class Logging(CeleryLogging):  # type: ignore[misc]
    """``app.log``."""

    def setup_handlers(self, *arguments: Any, formatter: Any = ColorFormatter, **options: Any) -> Any:
        """Celery's, with formatters of ours for its own."""
        formatter = {ColorFormatter: _Line, TaskFormatter: _TaskLine}.get(formatter, formatter)
        return super().setup_handlers(*arguments, formatter=formatter, **options)
