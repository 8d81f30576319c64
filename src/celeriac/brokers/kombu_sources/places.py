"""Where a broker is, for people and for names: its URL without anything secret."""

from __future__ import annotations

import re
from urllib.parse import unquote

__all__ = ["cleansed", "place_of"]

_URL = re.compile(r"(?P<scheme>[\w+.-]+)://(?:(?P<login>[^/?#]*)@)?(?P<rest>[^?#]*)")


def place_of(url: str) -> str:
    """The URL without login, query and fragment: ``sqla+postgresql://host/db``."""
    found = _URL.match(url)
    return f"{found['scheme']}://{found['rest']}" if found else url.partition("?")[0]


def cleansed(text: str, url: str) -> str:
    """``text`` without the password of ``url``, which drivers like to repeat, as it is written there or unquoted."""
    found = _URL.match(url)
    password = (found["login"] or "").partition(":")[2] if found else ""
    for secret in {password, unquote(password)} - {""}:
        text = text.replace(secret, "**")
    return text
