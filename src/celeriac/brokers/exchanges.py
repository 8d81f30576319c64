"""From publications to exchanges to publications to queues."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from celery.exceptions import QueueNotFound

from celeriac.errors import ConfigurationError
from celeriac.protocol.exchanges import Binding, is_headers, matching

if TYPE_CHECKING:
    from celeriac.brokers.base import Publication, Settlement

__all__ = ["refuse_headers", "settlements_to_queues", "to_queues"]

_Bindings = Callable[[str], Awaitable[Sequence[Binding]]]


def refuse_headers(bindings: Iterable[Binding]) -> None:
    """Raise ConfigurationError for an exchange whose bindings RabbitMQ alone can keep."""
    for bound in bindings:
        if is_headers(bound):
            raise ConfigurationError(
                f"The exchange {bound.exchange!r} is of type headers, which RabbitMQ alone has: use a topic exchange, "
                "or a broker_url that starts with amqp://."
            )


async def to_queues(bindings: _Bindings, publications: Sequence[Publication]) -> list[Publication]:
    """One publication for each queue that a message is for, as its exchange's bindings say.

    Raises ``celery.exceptions.QueueNotFound`` for a message that would be lost; one that is for all who listen
    (``fanout``) is for nobody when nobody does, as AMQP has it.
    """
    known: dict[str, Sequence[Binding]] = {}
    found: list[Publication] = []
    for each in publications:
        if each.queue:
            found.append(each)
            continue
        refuse_headers(each.bindings)
        if each.exchange not in known:
            known[each.exchange] = await bindings(each.exchange)
        queues = matching((*each.bindings, *known[each.exchange]), each.routing_key)
        if not queues and each.exchange_type != "fanout":
            raise QueueNotFound(
                f"No queue is bound to the exchange {each.exchange!r} for the routing key {each.routing_key!r}: "
                "name it in task_queues, or start a worker that consumes from it."
            )
        found += [replace(each, queue=queue) for queue in queues]
    return found


async def settlements_to_queues(
    bindings: _Bindings, settlements: Sequence[Settlement]
) -> Sequence[Settlement]:
    """The settlements with their publications as :func:`to_queues` gives them. Raises as it does."""
    if all(new.queue for each in settlements for new in each.publications):
        return settlements
    return [
        replace(each, publications=tuple(await to_queues(bindings, each.publications)))
        for each in settlements
    ]
