"""Redis URLs in the words that kombu and Celery know."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode, urlsplit

__all__ = ["celery_url"]

_SAME = {"valkey": "redis", "valkeys": "rediss"}


def celery_url(url: str) -> str:
    """The URL as kombu and Celery write it: ``valkey://`` is their ``redis://``, ``unix://`` their ``redis+socket://``.

    Any other URL stays as it is.
    """
    scheme, separator, rest = url.partition("://")
    if scheme in _SAME:
        return f"{_SAME[scheme]}{separator}{rest}"
    if scheme == "socket":
        return f"redis+{url}"
    if scheme != "unix":
        return url
    parts = urlsplit(url)
    query = [("virtual_host" if name == "db" else name, value) for name, value in parse_qsl(parts.query)]
    # kombu takes the path up to the first host-like part: ``unix://path`` would lose it.
    login, _, host = parts.netloc.rpartition("@")
    path = f"/{host}{parts.path}" if host else parts.path
    suffix = f"?{urlencode(query)}" if query else ""
    return f"redis+socket://{login}{'@' if login else ''}{path}{suffix}"
