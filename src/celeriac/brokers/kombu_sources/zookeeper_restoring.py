"""Messages of ZooKeeper that were taken and are put back: by who has them, or by others once that one is gone.

A taker's life is an ephemeral node. Whoever sees first that it is gone puts back what it had.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kazoo.exceptions import NodeExistsError, NoNodeError

from celeriac.brokers.kombu_sources.zookeeper_nodes import Nodes
from celeriac.brokers.kombu_sources.zookeeper_session import Create, Delete, Session

__all__ = ["Place", "read", "restore", "sweep"]

logger = logging.getLogger("celeriac.brokers.zookeeper")


class Place(NamedTuple):
    """Where a taken message is, and where it was."""

    copy: str
    entry: str


def read(
    session: Session, places: Sequence[Place], path: Callable[[Place], str]
) -> list[tuple[Place, bytes]]:
    """What is in these nodes, without those that are gone."""
    found = session.all(session.client.get_async(path(place)) for place in places)
    return [
        (place, answer[0])
        for place, answer in zip(places, found, strict=True)
        if not isinstance(answer, Exception)
    ]


def restore(session: Session, messages: Sequence[tuple[Place, Any]]) -> None:
    """Put messages back to where they were; what somebody else has put back already stays."""
    steps = [(Create(place.entry, value), Delete(place.copy)) for place, value in messages]
    for (place, value), (created, *_) in zip(messages, session.steps(steps), strict=True):
        if isinstance(created, NodeExistsError | NoNodeError):
            _restore_at_the_end(session, place, value)


def sweep(session: Session, nodes: Nodes, changed: Callable[[Any], None]) -> None:
    """Put back what takers had that live no more. ``changed`` is called once when one comes or goes."""
    # In this order: who has a folder was alive before, and may have died since.
    folders = session.children(nodes.taken)
    dead = set(folders).difference(session.watched(nodes.takers, changed) or ())
    for taker in dead:
        folder = f"{nodes.taken}/{taker}"
        for name in session.children(folder):
            _sweep_folder(session, f"{folder}/{name}", nodes.queue_of(name))
            session.all([session.client.delete_async(f"{folder}/{name}")])
        session.all([session.client.delete_async(folder)])


def _sweep_folder(session: Session, folder: str, queue: str) -> None:
    places = [Place(f"{folder}/{name}", f"{queue}/{name}") for name in session.children(folder)]
    there = read(session, places, lambda place: place.copy)
    if there:
        logger.info("Putting back %d messages of %s: whoever had them is gone.", len(there), queue)
        restore(session, there)


def _restore_at_the_end(session: Session, place: Place, value: Any) -> None:
    """The queue was deleted, and perhaps made anew, so that its numbers began again."""
    queue, _, name = place.entry.rpartition("/")
    session.ensure(queue)
    beginning = f"{queue}/{name[: len(Nodes.new_entry(0))]}"
    session.steps([(Create(beginning, value, numbered=True), Delete(place.copy))])
