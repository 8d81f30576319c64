"""Where a broker is, for people and for names: its URL without anything secret."""

from __future__ import annotations

import re
from urllib.parse import unquote

__all__ = ["cleansed", "place_of"]

#: Letters of a password that no word is likely to have in it.
_SHORT = 3

_URL = re.compile(r"(?P<scheme>[\w+.-]+)://(?:(?P<login>[^/?#]*)@)?(?P<rest>[^?#]*)")
#: Keys of Azure's have slashes in them, which kombu does not want quoted; the first may stand alone.
_AZURE = re.compile(r"(?P<scheme>azure\w+)://(?P<login>.*)@(?P<rest>[^?#]*)")


def place_of(url: str) -> str:
    """The URL without login, query and fragment: ``sqla+postgresql://host/db``."""
    found = _AZURE.match(url) or _URL.match(url)
    return f"{found['scheme']}://{found['rest']}" if found else url.partition("?")[0]


def cleansed(text: str, url: str) -> str:
    """``text`` without the password of ``url``, which drivers like to repeat, as it is written there or unquoted."""
    found = _AZURE.match(url) or _URL.match(url)
    login = (found["login"] or "") if found else ""
    password = login.partition(":")[2] or (login if url.startswith("azure") else "")
    for secret in {password, unquote(password)} - {""}:
        # A short one, as the x of ``sqs://x:x@localhost``, is part of other words.
        pattern = re.escape(secret)
        text = re.sub(pattern if len(secret) > _SHORT else rf"(?<!\w){pattern}(?!\w)", "**", text)
    return text
