"""Where the programs of this machine are, and what becomes of a test when one is not there."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

__all__ = ["missing", "program"]


def missing(reason: str) -> NoReturn:
    """Skip the test for want of a server, or fail it where all servers have to be there."""
    if os.environ.get("REQUIRE_SERVICES") == "1":
        pytest.fail(f"{reason} (REQUIRE_SERVICES=1)", pytrace=False)
    pytest.skip(reason)


def program(*names: str) -> str:
    """The path of the first of these programs that is installed; without any, the test ends here."""
    for name in names:
        if path := shutil.which(name):
            return path
    missing(f"{names[0]} is not installed: `make services` installs it on Debian")
