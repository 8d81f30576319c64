"""ASGI lifespans that open and close celery."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from celeriac.fastapi import shutdown
from celeriac.fastapi.garbage import spare_what_stays
from celeriac.webapp import in_worker

if TYPE_CHECKING:
    from celeriac.app import Celery

__all__ = ["Lifespan", "compose", "lifespan"]

#: A lifespan as FastAPI takes it: an app goes in, what the context yields becomes ``request.state``.
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[Mapping[str, Any] | None]]


@asynccontextmanager
async def lifespan(celery: Celery, app: FastAPI) -> AsyncIterator[None]:
    """Open celery's broker and store before the app's first request, and close them after its last.

    Raises :exc:`celeriac.errors.BrokerUnavailable` or :exc:`celeriac.errors.StoreUnavailable` when they cannot be
    opened, so that a server without its queue does not start.
    """
    async with celery:
        if in_worker.get():  # which has its own signals, and open what it needs
            yield
            return
        with shutdown.listen(), spare_what_stays():
            yield


def compose(celery: Celery, inner: Lifespan | None = None, *, worker: bool = False) -> Lifespan:
    """A lifespan around the app's own: ``inner`` runs with celery open, and what it yields is passed on.

    With ``worker``, a worker runs inside this process too. It starts after ``inner`` has, and ends before ``inner``
    does, so that tasks find what the app's lifespan sets up. Where a worker runs the lifespan for its tasks' sake, it
    starts no other.
    """
    run_worker: Callable[[Celery], AbstractAsyncContextManager[Any]] | None = None
    if worker:
        # Here and not in the lifespan: an import reads files, and would hold up the loop.
        from celeriac.worker.embedded import run_embedded

        run_worker = run_embedded

    @asynccontextmanager
    async def composed(app: FastAPI) -> AsyncIterator[Mapping[str, Any] | None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(lifespan(celery, app))
            state = await stack.enter_async_context(inner(app)) if inner is not None else None
            if celery.fastapi_app is None:
                celery.fastapi_app = app
            stack.enter_context(celery.web_apps.running(app, state))
            if run_worker is not None and not in_worker.get():
                await stack.enter_async_context(run_worker(celery))
            if not in_worker.get():
                stack.enter_context(spare_what_stays())  # what the inner one has made, too
            yield state

    return composed
