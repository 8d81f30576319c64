"""Run one probe, and print what it returned as the last line."""

from __future__ import annotations

import json
import sys
from importlib import import_module


def _main() -> None:
    name, arguments = sys.argv[1:]
    probe = import_module(f"benchmarks.probes.{name}").probe
    print(json.dumps(probe(**json.loads(arguments))))


if __name__ == "__main__":
    _main()
