"""Keeps SQLite connections out of forked children.

An SQLite connection must not be carried across a fork: the child inherits the belief that it holds the file
locks which only its parent holds, and may damage the file. So just before this process forks, running
transactions finish, new ones wait, and every connection is closed; both processes open fresh ones when they
need them.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from types import TracebackType

from sqlalchemy.engine import Engine

__all__ = ["Transaction", "close_before_fork", "run_before_fork", "run_in_child"]

#: Seconds that a fork waits for running transactions.
_PATIENCE = 5.0

_idle = threading.Condition()
_active = 0
_forking = False
_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_before: list[weakref.WeakMethod[Callable[[], None]]] = []
_in_child: list[Callable[[], None]] = []


class Transaction:
    """A context within which this process does not fork."""

    __slots__ = ()

    def __enter__(self) -> None:
        global _active
        with _idle:
            while _forking:
                _idle.wait()
            _active += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        global _active
        with _idle:
            _active -= 1
            if not _active:
                _idle.notify_all()


def close_before_fork(engine: Engine) -> None:
    """Close the engine's pooled connections before each fork of this process."""
    _engines.add(engine)


def run_before_fork(method: Callable[[], None]) -> None:
    """Call a bound method before each fork, while no transaction runs, as long as its object lives."""
    _before.append(weakref.WeakMethod(method))


def run_in_child(function: Callable[[], None]) -> None:
    """Call a function in each forked child, for ever."""
    _in_child.append(function)


def _before_fork() -> None:
    global _forking
    _idle.acquire()
    _forking = True
    _idle.wait_for(lambda: not _active, timeout=_PATIENCE)
    for reference in list(_before):
        method = reference()
        if method is None:
            _before.remove(reference)
        else:
            method()
    for engine in list(_engines):
        engine.dispose()


def _after_in_parent() -> None:
    global _forking
    _forking = False
    _idle.notify_all()
    _idle.release()


def _after_in_child() -> None:
    global _active, _forking, _idle
    # The waiters of the parent's condition are threads that this process does not have.
    _idle = threading.Condition()
    _active = 0
    _forking = False
    for engine in list(_engines):
        engine.dispose(close=False)
    for function in _in_child:
        function()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
