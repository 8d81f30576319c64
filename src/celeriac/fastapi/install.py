"""``celery.install(app)``: what a whole FastAPI app gets, beside the routes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from celeriac.errors import ConfigurationError
from celeriac.fastapi.errors import add_handlers
from celeriac.fastapi.request_id import RequestIdMiddleware

if TYPE_CHECKING:
    from celeriac.app import Celery

__all__ = ["install"]


def install(celery: Celery, app: FastAPI) -> None:
    """Answer our errors as problems, and give each request an id that its tasks carry.

    Before or after the routes are added; a second time it does nothing. Raises ConfigurationError once the app serves.
    """
    middleware: list[Any] = [each.cls for each in app.user_middleware]
    there = RequestIdMiddleware in middleware
    if app.middleware_stack is not None and not there:
        raise ConfigurationError("The app is serving already: call celery.install(app) before it starts.")
    add_handlers(app)
    if not there:
        app.add_middleware(RequestIdMiddleware, celery=celery)
