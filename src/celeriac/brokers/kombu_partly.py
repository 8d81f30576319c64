"""Batches on transports without transactions: which message went where, and which of them are the broker's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

from celeriac.brokers.base import PartlyPublished, Publication, Settlement
from celeriac.brokers.exchanges import to_queues
from celeriac.protocol.exchanges import Binding

__all__ = ["Parts", "Successors", "failure"]


class Parts:
    """The messages of a batch, one for each queue, and where in the batch each of them was.

    ``done`` has the places among ``publications`` of those that are the broker's.
    """

    def __init__(self, publications: Sequence[Publication], positions: Sequence[int]) -> None:
        self.publications = publications
        self.done: set[int] = set()
        self._positions = positions

    @classmethod
    async def of(
        cls, bindings: Callable[[str], Awaitable[Sequence[Binding]]], batch: Sequence[Publication]
    ) -> Parts:
        """Find the queues. Raises as :func:`celeriac.brokers.exchanges.to_queues` does."""
        if all(each.queue for each in batch):
            return cls(batch, range(len(batch)))
        known: dict[str, Sequence[Binding]] = {}

        async def remembered(exchange: str) -> Sequence[Binding]:
            if exchange not in known:
                known[exchange] = await bindings(exchange)
            return known[exchange]

        found = [(at, part) for at, each in enumerate(batch) for part in await to_queues(remembered, [each])]
        return cls([part for _, part in found], [at for at, _ in found])

    def failed(self, error: Exception, places: Sequence[int]) -> Exception:
        """What to raise when sending the parts in these places has failed: of which of the batch nothing is missing."""
        if isinstance(error, PartlyPublished):
            self.done.update(places[at] for at in error.published)
            error = error.error
        missing = {at for place, at in enumerate(self._positions) if place not in self.done}
        return failure(set(self._positions) - missing, error)


def failure(published: Collection[int], error: Exception) -> Exception:
    """The error itself, or, where these of a batch are the broker's, the one that says so."""
    return PartlyPublished(published, error) if published else error


class Successors:
    """What deliveries leave behind: published once by ``publish``, however often their settlement has to be tried."""

    def __init__(self, publish: Callable[[Sequence[Publication]], Awaitable[None]]) -> None:
        self._publish = publish
        self._begun: dict[str, tuple[Settlement, set[int]]] = {}

    async def publish(self, settlements: Sequence[Settlement]) -> None:
        """Publish what is not the broker's yet. Raises as ``publish`` does."""
        missing = [
            (done, at, new)
            for each in settlements
            if each.publications
            for done in (self._done(each),)
            for at, new in enumerate(each.publications)
            if at not in done
        ]
        published: Collection[int] = ()
        try:
            if missing:
                await self._publish([new for _, _, new in missing])
            published = range(len(missing))
        except PartlyPublished as exc:
            published = exc.published
            raise
        finally:
            for place in published:
                done, at, _ = missing[place]
                done.add(at)

    def forget(self, tags: Iterable[str]) -> None:
        """Their settlements are not tried again."""
        for tag in tags:
            self._begun.pop(tag, None)

    def _done(self, settlement: Settlement) -> set[int]:
        """Which of its publications are the broker's; a delivery may come to another end than was tried first."""
        begun = self._begun.get(settlement.tag)
        if begun is None or begun[0] is not settlement:
            begun = self._begun[settlement.tag] = settlement, set()
        return begun[1]
