"""A context variable of the application's own."""

from __future__ import annotations

from contextvars import ContextVar

tenant: ContextVar[str | None] = ContextVar("tenant", default=None)
