"""Dead letters as an app sees them: whose they are, and how they are replayed together with their records."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from celery import states

from celeriac.brokers.base import Broker, DeadLetter
from celeriac.errors import BrokerUnavailable, MalformedMessage, PublishTimeout
from celeriac.propagation import owner_in
from celeriac.protocol import envelope
from celeriac.protocol.message import Message
from celeriac.publisher import end_of
from celeriac.stores.base import Store
from celeriac.stores.records import Transition

__all__ = ["owner_of", "replay"]

#: Dead letters among which the asked ones are looked for, the newest first.
_MOST = 10_000


def owner_of(letter: DeadLetter) -> str | None:
    """Whose task it is, as the message says; nobody's if it cannot be read."""
    try:
        carried = letter.envelope
        message = carried if isinstance(carried, Message) else envelope.decode(carried)
    except MalformedMessage:
        return None
    return owner_in(message.headers)


async def replay(broker: Broker, store: Store, ids: Collection[str], now: float) -> int:
    """Put dead letters back into their queues, and start the records of their tasks over. Returns how many there were.

    ``now`` is in epoch seconds. Raises StoreUnavailable, when nothing has happened; BrokerUnavailable, when the
    records end again as they did; and PublishTimeout, when the broker may have put them back, and has not said so: the
    records stay started over, as the tasks may yet run.
    """
    asked = frozenset(ids)
    letters = [letter for letter in await broker.dead_letters(limit=_MOST) if letter.id in asked]
    if not letters:
        return 0
    records = await store.get([letter.task_id for letter in letters if letter.task_id])
    # Before the messages: a worker may have the first of them at its end by the time the last is published. A record
    # that still said FAILURE would have the next delivery, after a crash, taken for one whose task has ended.
    await store.transition(
        [
            Transition(
                task_id=record.id,
                state=states.PENDING,
                at=now,
                retries=record.retries,
                expires=None if record.expires is None else record.expires.timestamp(),
                replay=True,
            )
            for record in records.values()
        ]
    )
    try:
        return await broker.replay(_oldest_first(letters))
    except BrokerUnavailable as exc:
        if exc.unconfirmed:
            raise PublishTimeout(
                f"The broker did not confirm: {str(exc).rstrip('.')}; the tasks may or may not have been enqueued."
            ) from exc
        await store.transition([end_of(record) for record in records.values() if record.ready])
        raise


def _oldest_first(letters: Sequence[DeadLetter]) -> list[str]:
    return [letter.id for letter in sorted(letters, key=lambda letter: letter.at)]
