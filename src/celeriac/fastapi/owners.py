"""Whose the tasks are that a request enqueues."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from fastapi import Depends, params

from celeriac import propagation
from celeriac.fastapi.access import name_of

__all__ = ["owned_by"]


def owned_by(dependency: params.Depends | Callable[..., Any]) -> params.Depends:
    """A dependency for an app, a router or a route: what its requests enqueue belongs to whom ``dependency`` names.

    ``dependency`` gives a non-empty str, an int or a UUID, or None for a request of nobody's. ``using(owner=…)`` wins.
    """
    named = dependency if isinstance(dependency, params.Depends) else Depends(dependency)

    # A generator, so that the name goes when the request does, in whatever context a server runs the next one.
    async def own(owner: Any = named) -> AsyncIterator[None]:
        token = propagation.owner.set(None if owner is None else name_of(owner))
        try:
            yield
        finally:
            with suppress(ValueError):  # ended from another context, which has never had the name
                propagation.owner.reset(token)

    owning: params.Depends = Depends(own, scope=named.scope)
    return owning
