"""One connection that everything of one event loop shares: what is sent in one tick travels in one write.

Replies come back in the order of the commands, so that many batches can be under way and nobody waits for another's
answer. Nothing is sent twice: when the connection breaks, whoever has written is told so, because only they know
whether to ask again. What was written and has no reply may have been done, and its error says so (``unconfirmed``);
what was not written has not.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from celeriac.errors import BrokerUnavailable, again
from celeriac.redis.scripts import Script
from celeriac.redis.server import Server, count_received, transport_of
from celeriac.redis.trouble import turns_away, unavailable

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

__all__ = ["Link"]

#: How often a connection is looked at within the time that a reply may take: the more, the sooner silence is noticed.
_LOOKS = 5

Command = tuple[Any, ...]
_Sent = tuple[Command, "asyncio.Future[Any]"]


class Link:
    """A multiplexed connection to a server. It connects when something is sent, and again after it was lost.

    Everything raises BrokerUnavailable.
    """

    _links: ClassVar[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Server, Link]]] = (
        weakref.WeakKeyDictionary()
    )

    def __init__(self, server: Server) -> None:
        self.server = server
        self._users = 0
        self._outbox: list[_Sent] = []
        self._work = asyncio.Event()
        self._pending: deque[asyncio.Future[Any]] = deque()
        self._connection: AbstractConnection | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._writer: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._silent = 0
        self._received = 0  # bytes: a large reply takes its time, and is no silence
        self._lost: set[asyncio.Task[None]] = set()

    @classmethod
    def shared(cls, server: Server) -> Link:
        """The link of the running loop to this server."""
        links = cls._links.setdefault(asyncio.get_running_loop(), {})
        return links.setdefault(server, cls(server))

    @property
    def pending(self) -> int:
        """How many commands have been written and not been answered."""
        return len(self._pending)

    async def open(self) -> None:
        """Be ready to send; each call wants one ``close``. A server that is away shows when something is sent."""
        self._users += 1
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def close(self) -> None:
        """The last one out disconnects; what is unanswered then fails."""
        self._users -= 1
        if self._users > 0 or self._writer is None:
            return
        # All of this before anything is awaited: whoever opens it again meanwhile finds it as it was at first.
        writer, self._writer = self._writer, None
        self._work = asyncio.Event()
        error = BrokerUnavailable(f"The connection to {self.server} was closed.")
        self._fail([future for _, future in self._outbox], error)
        self._outbox = []
        if self._connection is not None:
            self._drop(self._connection, error)
        writer.cancel()
        await asyncio.wait([writer, *self._lost])

    def send(self, *command: Any) -> asyncio.Future[Any]:
        """Send a command; the future has its reply. Cancelled before it was written, it is not sent at all."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._writer is None:
            future.set_exception(BrokerUnavailable(f"The connection to {self.server} is not open."))
            return future
        self._outbox.append((command, future))
        self._work.set()
        return future

    async def run(self, script: Script, keys: Sequence[Any] = (), args: Sequence[Any] = ()) -> Any:
        """Run a script, which the server may not know yet.

        Sent when it is awaited; make a task of it, or use :meth:`start`, to send it in this tick.
        """
        return await self.start(script, keys, args)

    def start(
        self, script: Script, keys: Sequence[Any] = (), args: Sequence[Any] = ()
    ) -> asyncio.Future[Any]:
        """Send a script in this tick; the future has its reply."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        sent = self.send("EVALSHA", script.sha, len(keys), *keys, *args)

        def answered(first: asyncio.Future[Any]) -> None:
            if first.cancelled():
                future.cancel()
            elif (error := first.exception()) is None:
                _settle(future, first.result(), None)
            elif _is_unknown_script(error):
                again = self.send("EVAL", script.text, len(keys), *keys, *args)
                again.add_done_callback(lambda second: _copy(second, future))
            else:
                _settle(future, None, error)

        def given_up(outer: asyncio.Future[Any]) -> None:
            if outer.cancelled():
                sent.cancel()

        sent.add_done_callback(answered)
        future.add_done_callback(given_up)
        return future

    # -- out -----------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        work = self._work
        # Closing cancels this, but asyncio.wait_for, with which redis-py writes, may swallow that before Python 3.12.
        while work is self._work:
            await work.wait()
            work.clear()
            waiting = len(self._outbox)
            try:
                connection = self._connection or await self._connect()
            except Exception as exc:  # noqa: BLE001 - it belongs to those who have sent something
                # Who came later may have come after the outage, into whose hole this attempt has fallen.
                self._fail([future for _, future in self._take(waiting)], self._describe(exc))
                if self._outbox:
                    work.set()
                continue
            batch = self._take()
            if not batch:
                continue
            packed = self._pack(connection, batch)
            self._pending.extend(future for _, future in batch if not future.done())
            self._watch()
            try:
                await connection.send_packed_command(packed, check_health=False)
            except Exception as exc:  # noqa: BLE001 - as above
                self._drop(connection, self._describe(exc))

    def _take(self, first: int | None = None) -> list[_Sent]:
        """What is to be written, or the ``first`` of it."""
        batch = [(command, future) for command, future in self._outbox[:first] if not future.done()]
        self._outbox = [] if first is None else self._outbox[first:]
        return batch

    @staticmethod
    def _pack(connection: AbstractConnection, batch: Sequence[_Sent]) -> list[bytes]:
        packed: list[bytes] = []
        for command, future in batch:
            try:
                packed += _packed(connection, command)
            except Exception as exc:  # noqa: BLE001 - the one whose command it is
                future.set_exception(exc)
        return packed

    async def _connect(self) -> AbstractConnection:
        work = self._work
        connection = await self.server.connect()
        if work is not self._work:
            await _disconnect(connection)
            raise asyncio.CancelledError
        self._connection = connection
        self._transport = transport_of(connection)
        count_received(connection, self._count)
        self._reader = asyncio.get_running_loop().create_task(self._read(connection))
        return connection

    # -- in ------------------------------------------------------------------------------------------------------

    async def _read(self, connection: AbstractConnection) -> None:
        from redis.exceptions import RedisError, ResponseError

        pending = self._pending
        reason, owed = None, 0
        while True:
            reply, error = None, None
            try:
                reply = await connection.read_response(timeout=float("inf"), disconnect_on_error=False)
            except (RedisError, OSError) as exc:
                error = self._describe(exc)
                if turns_away(exc):
                    if reason is None:
                        # What is on its way has its own answers first, which tell that it was not done.
                        reason, owed = again(error), len(pending)
                elif not isinstance(exc, ResponseError):
                    self._drop(connection, error)
                    return
            _settle(pending.popleft(), reply, error)
            owed -= 1
            if reason is not None and owed <= 0:
                self._drop(connection, reason)
                return

    def _count(self, received: int) -> None:
        self._received += received

    def _watch(self) -> None:
        """Drop the connection when nothing has come for too long while replies were due."""
        if self._watchdog is None and self._pending:
            self._silent = 0
            self._look_later()

    def _look_later(self) -> None:
        self._watchdog = asyncio.get_running_loop().call_later(
            self.server.reply_timeout / _LOOKS, self._look, self._received, self._connection
        )

    def _look(self, received: int, connection: AbstractConnection | None) -> None:
        self._watchdog = None
        if not self._pending or connection is None or connection is not self._connection:
            return
        self._silent = self._silent + 1 if received == self._received else 0
        if self._silent < _LOOKS:
            self._look_later()
        else:
            self._drop(connection, self._describe(TimeoutError()))

    # -- trouble -------------------------------------------------------------------------------------------------

    def _drop(self, connection: AbstractConnection, error: BrokerUnavailable) -> None:
        """Give up a connection, and tell everybody who waits for a reply on it: that may have been done."""
        if self._connection is not connection:
            return
        self._connection = None
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        reader, self._reader = self._reader, None
        if reader is not None and reader is not asyncio.current_task():
            reader.cancel()
        lost = list(self._pending)
        self._pending.clear()
        error.unconfirmed = True
        self._fail(lost, error)
        if self._transport is not None:
            # Closing would wait until a silent server has taken what was written.
            self._transport.abort()
            self._transport = None
        closing = asyncio.get_running_loop().create_task(_disconnect(connection))
        self._lost.add(closing)
        closing.add_done_callback(self._lost.discard)

    @staticmethod
    def _fail(futures: Sequence[asyncio.Future[Any]], error: BrokerUnavailable) -> None:
        for future in futures:
            _settle(future, None, again(error))

    def _describe(self, error: BaseException) -> BrokerUnavailable:
        return unavailable(error, self.server)


async def _disconnect(connection: AbstractConnection) -> None:
    with contextlib.suppress(Exception):
        await connection.disconnect(nowait=True)


def _packed(connection: AbstractConnection, command: Command) -> list[bytes]:
    try:
        from hiredis import pack_command
    except ImportError:
        return list(connection.pack_command(*command))
    return [pack_command(command)]


def _settle(future: asyncio.Future[Any], reply: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(reply)
    else:
        future.set_exception(error)
        future.exception()  # whoever has gone does not have it logged


def _copy(source: asyncio.Future[Any], target: asyncio.Future[Any]) -> None:
    if source.cancelled():
        target.cancel()
    elif (error := source.exception()) is not None:
        _settle(target, None, error)
    else:
        _settle(target, source.result(), None)


def _is_unknown_script(error: BaseException) -> bool:
    from redis.exceptions import NoScriptError

    return isinstance(error.__cause__, NoScriptError)
