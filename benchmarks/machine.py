"""What the figures were measured on."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peer_environments import peer_versions

__all__ = ["describe", "is_busy"]

#: Of each peer, what decides how fast it is.
_PEERS = {
    "arq": ("arq", "redis", "hiredis", "uvloop"),
    "dramatiq": ("dramatiq", "redis", "hiredis", "uvloop"),
    "saq": ("saq", "redis", "hiredis", "uvloop", "orjson"),
    "streaq": ("streaq", "coredis", "uvloop"),
    "taskiq": ("taskiq", "taskiq-redis", "redis", "hiredis", "uvloop", "orjson"),
}

_PACKAGES = (
    "celeriac",
    "celery",
    "kombu",
    "SQLAlchemy",
    "pydantic",
    "fastapi",
    "uvicorn",
    "httptools",
    "uvloop",
    "redis",
    "hiredis",
)


def describe() -> dict[str, Any]:
    """Machine and versions."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": f"{os.cpu_count()} x {_cpu()}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": platform.platform(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "sqlite": sqlite3.sqlite_version,
        "redis-server": _redis(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        **{f"peer {peer}": peer_versions(peer, *packages) for peer, packages in _PEERS.items()},
        "load": round(os.getloadavg()[0], 2),
    }


def is_busy() -> bool:
    """Whether something else takes so much of the machine that the figures are not to be trusted."""
    busy: float = psutil.cpu_percent(interval=0.5)
    return busy > 100 / (os.cpu_count() or 1) / 2


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _redis() -> str | None:
    program = shutil.which("redis-server")
    if program is None:
        return None
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    return next((word[2:] for word in said.split() if word.startswith("v=")), said.strip())
