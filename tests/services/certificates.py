"""Certificates for servers and clients on the loopback interface, made when they are needed, by openssl."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.services.programs import program

__all__ = ["Certificates", "make_certificates"]

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1")


@dataclass(frozen=True)
class Certificates:
    """An authority of our own, and what it signed: PEM files, valid for a day."""

    authority: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


def make_certificates(folder: Path) -> Certificates:
    """Make an authority that nobody else trusts, and by it a server's and a client's certificate."""
    _request(folder, "authority", "-subj", "/CN=Test authority", "-addext", "keyUsage=critical,keyCertSign")
    signed = ("-CA", "authority.pem", "-CAkey", "authority.key", "-addext", "basicConstraints=CA:FALSE")
    names = "subjectAltName=IP:127.0.0.1,DNS:localhost"
    _request(folder, "server", "-subj", "/CN=localhost", *signed, "-addext", names)
    _request(folder, "client", "-subj", "/CN=client", *signed)
    return Certificates(
        authority=folder / "authority.pem",
        server=folder / "server.pem",
        server_key=folder / "server.key",
        client=folder / "client.pem",
        client_key=folder / "client.key",
    )


def _request(folder: Path, name: str, *options: str) -> None:
    files = ("-keyout", f"{name}.key", "-out", f"{name}.pem")
    command = [program("openssl"), "req", "-x509", *_NEW_KEY, *files, *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"openssl could not make the certificate {name!r}:\n{done.stderr}")
