"""Paths of routes, as the client of a request sees them: behind any prefix, mount and proxy."""

from __future__ import annotations

from urllib.parse import quote

from fastapi import Request
from starlette.routing import NoMatchFound

__all__ = ["path_of", "seen_path", "up"]

#: What may stand in a path as it is: RFC 3986, 3.3.
_SAFE = "/:@!$&'()*+,;=~"


def seen_path(request: Request) -> str:
    """The path of the request's URL, quoted. The names of the routes would lead to another one where a router is
    mounted twice, and nowhere under a prefix with parameters."""
    scope = request.scope
    path = str(scope["path"])
    root = str(scope.get("app_root_path", scope.get("root_path", ""))).rstrip("/")
    # A proxy may have taken the root path off; the servers themselves leave it on.
    if root and path != root and not path.startswith(f"{root}/"):
        path = root + path
    return quote(path, safe=_SAFE)


def up(path: str, route: str) -> str:
    """Where the router of this ``route`` is mounted: ``path`` without as many segments as the route has."""
    return path.rsplit("/", route.count("/"))[0]


def path_of(request: Request, name: str, task_id: str) -> str | None:
    """The path of the app's route of this name, if it has one that takes a task id and nothing else."""
    try:
        return request.url_for(name, task_id=task_id).path
    except NoMatchFound:
        return None
