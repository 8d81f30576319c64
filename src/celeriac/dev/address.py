"""Where the API listens."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket

__all__ = ["AddressUnusable", "check", "wait_until_up"]


class AddressUnusable(Exception):
    """Nothing can listen there. The message is meant for the user."""


def check(host: str, port: int) -> None:
    """Raise AddressUnusable, with one clear sentence, when nothing can listen on ``host`` and ``port``."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            # Two that have bound with SO_REUSEADDR only meet here.
            listener.listen(1)
    except OSError as exc:
        raise AddressUnusable(_sentence(host, port, exc)) from exc


def _sentence(host: str, port: int, exc: OSError) -> str:
    if exc.errno == errno.EADDRINUSE:
        return (
            f"Port {port} on {host} is taken by another program. "
            f"End that program, or choose another port: --port {port + 1}"
        )
    if exc.errno in (errno.EACCES, errno.EPERM):
        return f"This user may not listen on port {port}. Choose a port above 1023: --port 8000"
    return (
        f"Nothing can listen on {host}, port {port}: {exc.strerror or exc}. Choose another: --host 127.0.0.1"
    )


async def wait_until_up(host: str, port: int) -> None:
    """Wait until somebody accepts connections there."""
    target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(target, port)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            return
        await asyncio.sleep(0.05)
