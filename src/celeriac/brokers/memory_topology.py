"""Queues that were declared in this process's memory, and their bindings to exchanges."""

from __future__ import annotations

import threading

from celeriac.protocol.exchanges import Binding, QueueOptions

__all__ = ["MemoryTopology"]


class MemoryTopology:
    """The declared queues and bindings that go with the queues of one name. ``lock`` guards all of it."""

    _instances: dict[str, MemoryTopology] = {}
    _instances_lock = threading.Lock()

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.options: dict[str, QueueOptions] = {}
        self.used_at: dict[str, float] = {}
        self.bindings: dict[tuple[str, str, str], Binding] = {}

    @classmethod
    def named(cls, name: str) -> MemoryTopology:
        """The one that everybody in this process calls by this name."""
        with cls._instances_lock:
            return cls._instances.setdefault(name, cls())

    @classmethod
    def discard(cls, name: str) -> None:
        """Let go of the one of this name."""
        with cls._instances_lock:
            cls._instances.pop(name, None)

    def declare(self, queue: str, options: QueueOptions, now: float) -> None:
        """Remember a queue, and that it is used now (epoch seconds)."""
        self.options[queue] = options
        self.used_at[queue] = now

    def bind(self, binding: Binding) -> None:
        """Remember a binding."""
        self.bindings[binding.exchange, binding.routing_key, binding.queue] = binding

    def delete(self, queue: str) -> None:
        """Forget a queue and its bindings."""
        self.options.pop(queue, None)
        self.used_at.pop(queue, None)
        self.bindings = {key: bound for key, bound in self.bindings.items() if bound.queue != queue}

    def expired(self, now: float) -> list[str]:
        """The queues that nobody has used for as long as they live."""
        return [
            queue
            for queue, options in self.options.items()
            if options.expires_after is not None and self.used_at[queue] + options.expires_after < now
        ]
