"""Free ports of the loopback interface, reserved for as long as they are needed."""

from __future__ import annotations

import contextlib
import random
import socket

__all__ = ["HOST", "ReservedPort"]

HOST = "127.0.0.1"

# Below what Linux and macOS hand out to outgoing connections: while a server of ours is down, none of those can take
# its port, and a client that knocks again and again cannot meet itself there.
_RANGE = range(20_000, 32_000)


class ReservedPort:
    """A TCP port that no other test run takes until :meth:`release`, whether something listens there or not.

    The reservation is a UDP socket on the port of the same number: the kernel lets only one process have it, and gives
    it back however that process ends.
    """

    def __init__(self) -> None:
        for number in random.sample(_RANGE, 500):
            if (reservation := _reserve(number)) is not None:
                self.number = number
                self._reservation = reservation
                return
        raise RuntimeError(f"No free port between {_RANGE.start} and {_RANGE.stop}.")

    def release(self) -> None:
        """Let others have it."""
        self._reservation.close()


def _reserve(number: int) -> socket.socket | None:
    reservation = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with contextlib.suppress(OSError), socket.socket() as probe:
        reservation.bind((HOST, number))
        # As servers do: connections of a former server that are not quite forgotten are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, number))
        return reservation
    reservation.close()
    return None
