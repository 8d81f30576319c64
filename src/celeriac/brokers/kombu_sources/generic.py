"""Any transport of kombu's with virtual channels, through kombu's own code.

What a transport loses when its taker is killed between taking and acknowledging, it loses here, too: kombu's virtual
channels keep what is not acknowledged in the process's memory.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from queue import Empty
from time import monotonic
from typing import Any, ClassVar
from uuid import uuid4

from kombu.connection import Connection
from kombu.exceptions import KombuError
from kombu.transport import virtual
from kombu.utils.json import dumps, loads

from celeriac.brokers.base import Capabilities, PartlyPublished
from celeriac.brokers.kombu_names import raw
from celeriac.brokers.kombu_sources.base import Outgoing, Source, Taken
from celeriac.brokers.kombu_sources.envelopes import texts
from celeriac.errors import ConfigurationError

__all__ = ["GenericSource"]

#: Seconds for connecting, where a transport has a limit at all.
_CONNECTING = 5.0

#: The key under which a payload that is no JSON comes out of a channel.
_RAW = "celeriac-unparsed"


class GenericSource(Source):
    """A transport that has no source of its own."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        delay=False,
        priority=False,
        lease=False,
        delivery_count=False,
        dead_letters=False,
        atomic=False,
        fanout=False,
    )

    def __init__(self, url: str, *, options: Mapping[str, Any] | None = None, lease: float = 30.0) -> None:
        super().__init__(url, options=options, lease=lease)
        self._connection: Any = None
        self._channel: Any = None
        self._get: Any = None
        self._declared: set[str] = set()
        # With the channel that each came from, if it has to be told what becomes of it.
        self._unended: dict[str, tuple[Any, Taken]] = {}
        self._returning: list[str] = []
        self._turn = 0

    @classmethod
    def load_driver(cls, url: str) -> None:
        """Import the transport. Raises ImportError, or ConfigurationError for one without virtual channels."""
        connection = Connection(url)
        transport = connection.get_transport_cls()
        if not issubclass(transport, virtual.Transport):
            name = url.partition(":")[0]
            raise ConfigurationError(
                f"kombu's {name} transport has no virtual channels, and celeriac no bridge to it."
            )
        connection.create_transport()  # some miss their driver only now

    @property
    def identity(self) -> str:
        """The place and the prefix of its queues, where there is one."""
        return self.place + str(self.options.get("queue_name_prefix") or "")

    def open(self) -> None:
        """Connect."""
        options = {name: value for name, value in self.options.items() if name != "ssl"}
        self._connection = Connection(
            self.url,
            transport_options=options,
            connect_timeout=_CONNECTING,
            ssl=self.options.get("ssl") or False,
        )
        self.errors = (OSError, KombuError, *self._connection.connection_errors)
        self._connection.connect()
        self._channel = self._connection.channel()
        # At its end kombu would look for exchanges that this channel has never heard of, and find no queue.
        self._channel.do_restore = False
        self._get = _tolerant(self._channel)
        self._declared.clear()
        self._return()

    def close(self) -> None:
        """Give back what has not ended, and disconnect."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                for handle in list(self._unended):
                    self._put_back(handle)
            finally:  # what could not be put is yet finished, or given back on the next connection
                connection.release()

    def _declare(self, queue: str) -> None:
        if queue not in self._declared:
            self._channel._new_queue(queue)
            self._declared.add(queue)

    def put(self, messages: Sequence[Outgoing]) -> None:
        """Put one message after the other, as kombu's producer does."""
        for at, (text, each) in enumerate(zip(texts(messages), messages, strict=True)):
            try:
                self._declare(each.queue)
                self._channel._put(each.queue, loads(text))
            except Exception as exc:
                if at:
                    raise PartlyPublished(range(at), self.explained(exc)) from exc
                raise

    def take(self, queues: Sequence[str], limit: int, wait: float) -> list[Taken]:
        """Take one message after the other, without acknowledging."""
        until = monotonic() + wait
        self._turn += 1
        while True:
            if taken := self._round(queues, limit):
                return taken
            left = until - monotonic()
            if left <= 0 or self.pause(min(left, self.polling_interval)):
                return []

    def _round(self, queues: Sequence[str], limit: int) -> list[Taken]:
        """One of each queue in turn, until all are empty."""
        start = self._turn % max(1, len(queues))
        left = [*queues[start:], *queues[:start]]
        taken: list[Taken] = []
        while left and len(taken) < limit:
            for queue in list(left)[: limit - len(taken)]:
                try:
                    found = self._take_one(queue)
                except Exception:
                    if taken:  # they are nowhere else any more; what is wrong will be so again
                        return taken
                    raise
                if found is None:
                    left.remove(queue)
                else:
                    taken.append(found)
        return taken

    def _take_one(self, queue: str) -> Taken | None:
        self._declare(queue)
        try:
            payload = self._get(queue)
        except Empty:
            return None
        if _RAW in payload:
            taken = Taken(queue, payload[_RAW], uuid4().hex)
            self._unended[taken.handle] = None, taken
            return taken
        message = self._channel.Message(dict(payload), channel=self._channel)
        self._channel.qos.append(message, message.delivery_tag)
        taken = Taken(queue, dumps(payload).encode(), message.delivery_tag)
        self._unended[message.delivery_tag] = self._channel, taken
        return taken

    def finish(self, taken: Sequence[Taken]) -> None:
        """Acknowledge."""
        # All of them are done with, whatever becomes of the first: closing must give none of them back.
        ended = [self._unended.pop(each.handle) for each in taken if each.handle in self._unended]
        for channel, each in ended:
            if channel is self._channel:
                channel.basic_ack(each.handle)

    def give_back(self, taken: Sequence[Taken]) -> None:
        """Put the messages anew, then acknowledge: on the next connection where this one is gone."""
        self._returning += [each.handle for each in taken]
        self._return()

    def _return(self) -> None:
        while self._returning:
            if self._returning[0] in self._unended:
                self._put_back(self._returning[0])
            del self._returning[0]

    def _put_back(self, handle: str) -> None:
        channel, taken = self._unended[handle]
        assert isinstance(taken.envelope, bytes)
        payload = _loads(taken.envelope)
        if _RAW in payload:  # kombu writes nothing but JSON
            payload = loads(*texts([Outgoing(taken.queue, raw(taken, taken.queue).message)]))
        self._channel._put(taken.queue, payload)
        del self._unended[handle]
        if channel is self._channel:
            channel.basic_ack(handle)

    def size(self, queue: str) -> int:
        """How many messages there are, as far as the transport can tell."""
        self._declare(queue)
        return int(self._channel._size(queue))

    def purge(self, queue: str) -> int:
        """Delete what waits."""
        self._declare(queue)
        return int(self._channel._purge(queue) or 0)


def _tolerant(channel: Any) -> Any:
    """The channel's ``_get``, which removes a message before it parses it, so that one that is no JSON is not lost."""
    get = channel._get
    function = getattr(get, "__func__", None)
    if function is None or "loads" not in function.__globals__:
        return get
    names = {**function.__globals__, "loads": _loads}
    own = types.FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    return types.MethodType(own, channel)


def _loads(text: str | bytes) -> Any:
    try:
        found = loads(text)
    except ValueError:
        found = None
    if isinstance(found, dict):
        return found
    return {_RAW: text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")}
