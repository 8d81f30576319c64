"""The RabbitMQ servers that tests start."""

from __future__ import annotations

import os
from pathlib import Path

from tests.services import RabbitMQServer


def listeners(group: int) -> set[str]:
    """The addresses, as the kernel writes them, on which the processes of a group listen."""
    inodes = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(process.name)) == group:
                inodes |= {str(each.readlink()) for each in (process / "fd").iterdir()}
        except OSError:  # it has ended
            continue
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}


def test_nobody_else_on_the_network_can_speak_to_the_node(rabbitmq: RabbitMQServer) -> None:
    assert rabbitmq.group is not None
    assert listeners(rabbitmq.group) == {"0100007F"}
    assert "celeriac" in rabbitmq.command("status")
