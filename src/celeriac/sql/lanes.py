"""A thread that runs operations of any event loop in transactions, as many in one as have come in meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import queue
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from celeriac.errors import BrokerUnavailable, CeleriacError
from celeriac.sql import engine as sql_engine

__all__ = ["Lane", "Transact"]

T = TypeVar("T")

#: Runs a function in a transaction, or raises.
Transact = Callable[[Callable[[Connection], None]], None]

#: Operations in one transaction at most, so that the first do not wait for too many others.
_GROUP_LIMIT = 512


@dataclass(slots=True)
class _Operation:
    run: Callable[[Connection], Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class _Faulty(Exception):
    """The operation at ``index`` cannot be done; the others may."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


class Lane:
    """Runs operations in order of submission, in groups. One that fails spoils nothing for its neighbours."""

    def __init__(self, name: str, transact: Transact, done: Callable[[], None] | None = None) -> None:
        """Start the thread. ``done`` is called on it after each group."""
        self._inbox: queue.SimpleQueue[list[_Operation] | None] = queue.SimpleQueue()
        self._transact = transact
        self._done = done
        self._gate = threading.Lock()
        self._stopped = False
        self._submitted: dict[asyncio.AbstractEventLoop, list[_Operation]] = {}
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    def submit(self, run: Callable[[Connection], T]) -> asyncio.Future[T]:
        """Queue an operation; the future is of the running loop. A cancelled one runs only if it has begun.

        To wait for the database's lock is not to begin.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        with self._gate:
            if self._stopped:
                raise BrokerUnavailable("The database was closed.")
            submitted = self._submitted.get(loop)
            if submitted is None:
                submitted = self._submitted[loop] = []
                # What is submitted in one tick of the loop, as a message and its record are, is one transaction.
                loop.call_soon(self._hand_over, loop)
            submitted.append(_Operation(run, loop, future))
        return future

    def _hand_over(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._gate:
            if submitted := self._submitted.pop(loop, None):
                self._inbox.put(submitted)

    def stop(self) -> None:
        """Finish what was submitted, then end. Returns when the thread has ended."""
        with self._gate:
            self._stopped = True
            for submitted in self._submitted.values():
                self._inbox.put(submitted)
            self._submitted.clear()
            self._inbox.put(None)
        self._thread.join()

    def _main(self) -> None:
        stopping = False
        while not stopping:
            group, stopping = self._next_group()
            if group:
                self._run(group)
                _resolve(group)
                if self._done is not None:
                    self._done()

    def _next_group(self) -> tuple[list[_Operation], bool]:
        submitted = self._inbox.get()
        group: list[_Operation] = []
        while submitted is not None:
            group += [operation for operation in submitted if not operation.future.cancelled()]
            if len(group) >= _GROUP_LIMIT:
                return group, False
            try:
                submitted = self._inbox.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _run(self, group: list[_Operation]) -> None:
        """One transaction for all; around a faulty operation, one for those before, itself, and those after."""
        while group:
            try:
                self._transact(_run_all(group))
            except _Faulty as exc:
                self._run(group[: exc.index])
                self._run([group[exc.index]])
                group = group[exc.index + 1 :]
            except BaseException as exc:  # noqa: BLE001 - it belongs to the waiting tasks, not to this thread
                for operation in group:
                    operation.error = exc
                return
            else:
                return


def _run_all(group: list[_Operation]) -> Callable[[Connection], None]:
    """What runs them in one transaction; those that were cancelled while it waited for the lock are left out."""
    if len(group) == 1:
        return lambda connection: None if group[0].future.cancelled() else _run_one(group[0], connection)

    def run_all(connection: Connection) -> None:
        for index, operation in _wanted(group):
            try:
                _run_one(operation, connection)
            except Exception as exc:
                # A busy or broken database is nobody's fault: the transaction is tried again, or fails for
                # all.
                if isinstance(exc, DBAPIError) and sql_engine.concerns_everybody(exc):
                    raise
                raise _Faulty(index) from exc

    return run_all


def _wanted(group: list[_Operation]) -> list[tuple[int, _Operation]]:
    """Those that somebody still waits for, with their places."""
    # Looked at from the end, while the loop goes on: a task's record is submitted, and cancelled, before its message.
    # So whoever gives up both just now leaves no record without a message.
    wanted = [each for each in reversed(list(enumerate(group))) if not each[1].future.cancelled()]
    return wanted[::-1]


def _run_one(operation: _Operation, connection: Connection) -> None:
    try:
        operation.result = operation.run(connection)
    except StopIteration as exc:
        raise RuntimeError("An operation raised StopIteration.") from exc  # which no future can carry


def _resolve(group: list[_Operation]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[_Operation]] = defaultdict(list)
    for operation in group:
        by_loop[operation.loop].append(operation)
    for loop, operations in by_loop.items():
        # A loop that has closed meanwhile has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_set_results, operations)


def _set_results(operations: list[_Operation]) -> None:
    for operation in operations:
        if operation.future.done():
            continue
        if operation.error is None:
            operation.future.set_result(operation.result)
        else:
            operation.future.set_exception(_own(operation.error))


def _own(error: BaseException) -> BaseException:
    """An exception for one waiter alone: raising it adds to its traceback, and others may hold the same one."""
    if not isinstance(error, CeleriacError):
        return error
    own = copy.copy(error)
    own.__cause__ = error.__cause__
    return own
