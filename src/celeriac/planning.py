"""Plans: what Celery's synchronous code would do by I/O, collected for an event loop to do it without blocking.

Canvas, ``Task.replace``, ``Backend.mark_as_failure`` and the like decide, and publish and store as they go. While a
plan is active they run as they are, on the loop, and what they would have sent waits in the plan; who made the plan
carries it out with the asynchronous broker and store, in one batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

from kombu.exceptions import EncodeError

from celeriac.brokers.base import Publication
from celeriac.calls import Call, CallBuilder, NotNative, planned
from celeriac.compat import as_current, current_execution
from celeriac.errors import BrokerError
from celeriac.publisher import Publisher
from celeriac.stores.base import Store
from celeriac.stores.chords import ChordPart
from celeriac.stores.records import Transition

__all__ = ["Errback", "NoProducer", "Part", "Plan", "active_plan", "collecting", "prepare", "publish"]

_plan: ContextVar[Plan | None] = ContextVar("celeriac_plan", default=None)

#: An addition to the store's chords, as a method's name and its arguments.
_ChordStep = tuple[Literal["set_chord_size", "save_chord_header", "extend_chord"], tuple[Any, ...]]


@dataclass(slots=True)
class Part:
    """A part of a chord that has ended, and the chord's body."""

    part: ChordPart
    body: Any


@dataclass(slots=True)
class Errback:
    """An errback of the new style: Celery calls it where the task failed, with request, exception and traceback."""

    signature: Any
    arguments: tuple[Any, ...]


class Plan:
    """What is left to do, kind by kind, in the order in which the kinds are to be done.

    Args:
        app: Whose tasks these are.
        calls: Builds the messages.
        options: What every call gets besides its own options (``owner``).
        states: The states of tasks that the planned code may ask for: it cannot wait for the store. ``None`` where it
            is a task's own code, which gets an answer from the store, and waits.
        ahead: Whether the tasks that follow get records, too: what a chain names was recorded with its first task.
    """

    __slots__ = (
        "_builder",
        "_options",
        "_recorded",
        "app",
        "calls",
        "chord_steps",
        "collected",
        "errbacks",
        "foreign",
        "parts",
        "replies",
        "states",
        "transitions",
    )

    def __init__(
        self,
        app: Any,
        calls: CallBuilder,
        *,
        options: Mapping[str, Any] | None = None,
        states: Mapping[str, str] | None = None,
        ahead: bool = True,
    ) -> None:
        self.app = app
        self._builder = calls
        self._options = options or {}
        self._recorded: set[str] | None = set() if ahead else None
        self.states = states
        #: Nothing more is to be added.
        self.collected = False
        self.chord_steps: list[_ChordStep] = []
        self.transitions: list[Transition] = []
        self.calls: list[Call] = []
        #: What only Celery's own, blocking code can do: functions to be called in a thread.
        self.foreign: list[Callable[[], object]] = []
        self.errbacks: list[Errback] = []
        self.parts: list[Part] = []
        #: To those who wait at queues of their own for tasks that will not run.
        self.replies: list[Publication] = []

    def call(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
        send: Callable[..., object],
    ) -> None:
        """Plan a call with the options of ``send_task``, ``task_id`` among them.

        ``send(name, args, kwargs, **options)`` is for what asks for Celery's own publishing. Raises EncodeError.
        """
        options = {**self._options, **options}
        try:
            call = self._builder.build(name, args, kwargs, options)
        except NotNative:
            self.foreign.append(lambda: send(name, args, kwargs, **options))
        except TypeError as exc:
            raise EncodeError(f"The arguments of {name} cannot be sent as JSON: {exc}") from exc
        else:
            call.ahead = self._ahead(call)
            self.calls.append(call)

    def _ahead(self, call: Call) -> Sequence[Transition]:
        if self._recorded is None:
            return ()
        record, found = call.record, []
        root_id = record.root_id or record.task_id
        for step in planned(call.body[2], root_id=root_id, at=record.at, owner=record.owner):
            if step.task_id not in self._recorded:
                self._recorded.add(step.task_id)
                found.append(step)
        return found


def active_plan() -> Plan | None:
    """The plan that this code adds to: the one being made, or that of the task whose coroutine runs here."""
    plan = _plan.get()
    if plan is not None and not plan.collected:  # what was started meanwhile has inherited it
        return plan
    execution = current_execution()
    return None if execution is None else execution.ambient_plan()


@contextmanager
def collecting(plan: Plan) -> Iterator[Plan]:
    """Have everything inside plan instead of do. Nothing inside may wait: the whole thread has the app as its own."""
    token = _plan.set(plan)
    try:
        with as_current(plan.app):
            yield plan
    finally:
        plan.collected = True
        _plan.reset(token)


class NoProducer:
    """What canvas passes around as producer while a plan is made, and publishes nothing with.

    ``publish`` is what other code may want of a producer: it is called in a thread, of one that ``acquire`` gives.
    """

    connection = None

    def __init__(self, plan: Plan, acquire: Callable[[], AbstractContextManager[Any]]) -> None:
        self._plan = plan
        self._acquire = acquire

    def publish(self, *args: Any, **options: Any) -> None:
        """Plan a message of the caller's own making."""

        def publish() -> None:
            with self._acquire() as producer:
                producer.publish(*args, **options)

        self._plan.foreign.append(publish)

    def __enter__(self) -> NoProducer:
        return self

    def __exit__(self, *_exc: object) -> None: ...


async def prepare(plan: Plan, store: Store) -> None:
    """Write what must be there before the first task is published: the chords' sizes, and states. Raises StoreError."""
    if steps := plan.chord_steps:
        await asyncio.gather(*(getattr(store, name)(*arguments) for name, arguments in steps))
        plan.chord_steps = []
    if plan.transitions:
        await store.transition(plan.transitions)
        plan.transitions = []


async def publish(
    plan: Plan, publisher: Publisher, deadline: float | None = None, *, apart: bool = False
) -> None:
    """Publish the calls, all or none, and then what only Celery's own code can. Raises as ``publish_many`` does.

    ``apart``: the calls have nothing to do with each other; what is refused for good is left out, and raised last.
    """
    if plan.calls:
        try:
            await publisher.publish_many(plan.calls, deadline)
        except Exception as exc:
            if not apart or len(plan.calls) == 1 or not _is_refusal(exc):
                raise
            await _publish_apart(plan, publisher, deadline)
        plan.calls = []
    while plan.foreign:
        await asyncio.to_thread(plan.foreign[0])
        del plan.foreign[0]


async def _publish_apart(plan: Plan, publisher: Publisher, deadline: float | None) -> None:
    refused: Exception | None = None
    while plan.calls:
        try:
            await publisher.publish_many(plan.calls[:1], deadline)
        except Exception as exc:
            if not _is_refusal(exc):
                raise
            refused = refused or exc
        del plan.calls[0]
    if refused is not None:
        raise refused


def _is_refusal(error: Exception) -> bool:
    """Whether trying again is no use."""
    return not isinstance(error, BrokerError) or getattr(error, "permanent", False)
