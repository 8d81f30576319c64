"""Where things are in ZooKeeper: queues as kazoo's recipe and kombu have them, and beside them what is taken."""

from __future__ import annotations

import posixpath
from urllib.parse import quote, unquote, urlsplit

__all__ = ["ENTRY", "Nodes", "hosts_of"]

#: What the name of a message begins with.
ENTRY = "entry-"

_PORT = 2181


class Nodes:
    """The paths under the root that a URL names.

    ::

        <root>/<queue>/entry-<999 - urgency>-<number>         a message that waits
        <root>/.celeriac/takers/<taker>                       ephemeral: a worker that lives
        <root>/.celeriac/taken/<taker>/<queue>/entry-…        a message that it has, until it is kept elsewhere

    What is taken is out of the queue's folder: stock consumers take whatever they find in there.
    """

    def __init__(self, url: str, taker: str) -> None:
        self._root = "/" + urlsplit(url.partition(";")[0]).path.strip("/")
        self._taker = taker
        self.takers = posixpath.join(self._root, ".celeriac", "takers")
        self.taken = posixpath.join(self._root, ".celeriac", "taken")
        self.me = posixpath.join(self.takers, taker)

    def queue(self, queue: str) -> str:
        """A queue, by kombu's rule."""
        return posixpath.join(self._root, queue)

    def taken_from(self, queue: str) -> str:
        """What this taker has of a queue."""
        return posixpath.join(self.taken, self._taker, quote(queue, safe=""))

    def queue_of(self, name: str) -> str:
        """The queue that a folder of a taker is for."""
        return self.queue(unquote(name))

    @staticmethod
    def new_entry(priority: int) -> str:
        """The beginning of a message's name, to which ZooKeeper adds a number. The lowest is taken first."""
        return f"{ENTRY}{9 - priority:03d}-"


def hosts_of(url: str) -> list[tuple[str, int]]:
    """The servers of a URL: ``zookeeper://host[:port][;zookeeper://other[:port]]/root``."""
    parts = [urlsplit(each if "://" in each else f"zookeeper://{each}") for each in url.split(";") if each]
    return [(part.hostname or "localhost", part.port or _PORT) for part in parts]
