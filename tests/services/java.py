"""What servers that run on Java have in common here: a quick start counts more than a long life."""

from __future__ import annotations

import os

__all__ = ["ENVIRONMENT", "OPTIONS", "PATIENCE"]

#: Seconds that such a server gets to start, on a machine that does other things as well.
PATIENCE = 60.0

#: One compiler, one collector and a small heap: a second less to start, and a fraction of the memory.
OPTIONS = (
    "-Xms64m",
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-Djava.net.preferIPv4Stack=true",
)

#: Without what a user has set for Java programs of their own.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name not in {"CLASSPATH", "JAVA_TOOL_OPTIONS"}
}
