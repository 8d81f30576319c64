"""A process that takes from a transport of kombu's and does not finish: ``CLASS URL OPTIONS QUEUE COUNT``.

It prints "holding" once it has COUNT messages, and holds them until it is killed.
"""

from __future__ import annotations

import importlib
import json
import sys


def main(path: str, url: str, options: str, queue: str, count: str) -> None:
    module, _, name = path.partition(":")
    source = getattr(importlib.import_module(module), name)(url, options=json.loads(options))
    source.open()
    taken = []
    while len(taken) < int(count):
        taken += source.take([queue], int(count) - len(taken), 1.0)
    sys.stdout.write("holding\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
