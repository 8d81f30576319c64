"""Exchanges in Redis, as kombu's transport keeps them: a set of bindings each, and pub/sub for those of type fanout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from celeriac.brokers.base import Publication
from celeriac.brokers.redis_keys import Layout
from celeriac.protocol.exchanges import Binding

__all__ = ["ExchangeLayout", "to_listeners"]


class ExchangeLayout:
    """Names and texts of kombu's.

    Args:
        layout: The names of other keys.
        options: kombu's transport options ``fanout_prefix`` and ``fanout_patterns``.
        db: The number of the database.
    """

    def __init__(self, layout: Layout, options: Mapping[str, Any], db: int) -> None:
        self._prefix, self._separator = layout.prefix, layout.separator
        prefix = options.get("fanout_prefix", True)
        template = prefix if isinstance(prefix, str) else "/{db}." if prefix else ""
        self._channel = layout.prefix + template.format(db=db)
        self._patterns = bool(options.get("fanout_patterns", True))

    def tables_of(self, exchange: str) -> tuple[str, str]:
        """The sets of an exchange's bindings: of all, and of those to queues that last."""
        return (
            f"{self._prefix}_kombu.binding.{exchange}",
            f"{self._prefix}_kombu.binding_permanent.{exchange}",
        )

    def member(self, binding: Binding) -> str:
        """A binding as a member of those sets."""
        return self._separator.join((binding.routing_key, binding.pattern, binding.queue))

    def binding(self, exchange: str, member: bytes) -> Binding:
        """The binding that a member stands for."""
        routing_key, pattern, queue = member.decode().split(self._separator)
        return Binding(exchange, routing_key, queue, pattern)

    def channel_of(self, publication: Publication) -> str:
        """The channel on which the listeners of a fanout exchange hear a message."""
        key = publication.routing_key
        return f"{self._channel}{publication.exchange}{f'/{key}' if key and self._patterns else ''}"


def to_listeners(
    publications: Sequence[Publication],
) -> tuple[Sequence[Publication], Sequence[Publication]]:
    """Those that queues get, and those that whoever listens at the moment gets."""
    fanout = [each for each in publications if not each.queue and each.exchange_type == "fanout"]
    return ([each for each in publications if each not in fanout], fanout) if fanout else (publications, ())
