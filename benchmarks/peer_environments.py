"""The environments of the peers. They do not agree on a version of redis-py, so each has one of its own."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

__all__ = ["peer_python", "peer_versions", "why_no_peer"]

_FOLDER = Path(__file__).resolve().parent.parent / ".venv-peers"


def peer_python(peer: str) -> str:
    """The interpreter of the environment that belongs to ``peer``."""
    return str(_FOLDER / peer / "bin" / "python")


def why_no_peer(peer: str) -> str | None:
    """Why ``peer`` cannot be measured here, or ``None``."""
    if not Path(peer_python(peer)).exists():
        return f"{peer} is not installed; `make peers` installs it"
    if peer not in _versions(peer):
        return f"{peer} could not be installed; `make peers` says why"
    return None


def peer_versions(peer: str, *packages: str) -> dict[str, str]:
    """Which versions of ``packages`` are in the environment of ``peer``; without those that are not."""
    versions = _versions(peer)
    return {package: versions[package] for package in packages if package in versions}


def _versions(peer: str) -> dict[str, str]:
    folders = [str(folder) for folder in (_FOLDER / peer / "lib").glob("python*/site-packages")]
    return {each.name.lower(): each.version for each in importlib.metadata.distributions(path=folders)}
