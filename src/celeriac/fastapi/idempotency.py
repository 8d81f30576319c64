"""``Idempotency-Key``: a request that is sent again does not run its task again.

The store remembers for each key which task it stands for, before that task is published. A process that dies in between
leaves a key whose task has no record; whoever sends the request again publishes it then, under the same id.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Header

from celeriac.calls import new_id
from celeriac.errors import KeyReused, PublishTimeout, StoreError, StoreUnavailable
from celeriac.stores.base import Store
from celeriac.stores.keys import KeyClaim
from celeriac.stores.records import TaskRecord
from celeriac.uploads.reference import PendingUpload

__all__ = [
    "REPLAYED",
    "Idempotency",
    "KeyedCall",
    "OptionalKey",
    "RequiredKey",
    "contents_of",
    "digest",
    "with_contents",
]

T = TypeVar("T")

Idempotency = Literal["optional", "required", "off"]

_KEY: Any = Header(
    alias="Idempotency-Key",
    min_length=1,
    max_length=255,
    pattern="^[!-~]([ -~]*[!-~])?$",  # HTTP cuts off the spaces around it
    description="Any text of printable ASCII. Of requests with the same key and body, one runs the task.",
)
OptionalKey = Annotated[str | None, _KEY]
RequiredKey = Annotated[str, _KEY]

#: Says that the task was enqueued by an earlier request.
REPLAYED = "Idempotency-Replayed"

#: Seconds that a claim may take, beside the deadline of the publish that follows it.
_MARGIN = 1.0

#: Seconds that the clocks of two servers may differ.
_SKEW = 5.0

_log = logging.getLogger(__name__)


def digest(*parts: Any) -> str:
    """A text of fixed length that is the same for the same JSON values alone."""
    text = json.dumps(parts, default=repr, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


async def contents_of(files: Sequence[PendingUpload]) -> dict[str, str]:
    """What is in these files, in a text of fixed length for each, by their keys; the keys are new in each request."""
    return {each.reference.key: await asyncio.to_thread(_digest_file, each) for each in files}


def with_contents(value: Any, contents: Mapping[str, str]) -> Any:
    """The JSON value, with what :func:`contents_of` tells of files instead of their keys."""
    if isinstance(value, PendingUpload):
        file = value.reference
        return {"filename": file.filename, "type": file.content_type, "content": contents[file.key]}
    return [with_contents(each, contents) for each in value] if isinstance(value, list) else value


def _digest_file(pending: PendingUpload) -> str:
    file, found = pending.file.file, hashlib.sha256()
    while chunk := file.read(1 << 20):
        found.update(chunk)
    file.seek(0)
    return found.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyedCall:
    """A call that is published once, however many requests ask for it, in any processes.

    Args:
        store: where the key is claimed.
        key: the key, with what it is unique in.
        fingerprint: what tells this call from others.
        deadline: seconds that publishing may take, and each answer of the store.
        expires: seconds that the key is remembered.
        publish: publishes the call under a task id, within so many seconds.
    """

    store: Store
    key: str
    fingerprint: str
    deadline: float
    expires: float
    publish: Callable[[str, float], Awaitable[Any]]

    async def once(self) -> tuple[str, TaskRecord | None]:
        """The id of the task, and its record if it is not this call that has published it.

        Raises KeyReused when the key stands for another call; StoreUnavailable when the store does not answer in time;
        what ``publish`` raises, and then the key is free again, unless it is PublishTimeout: the task may be the
        broker's, which shows when the request is sent again.
        """
        token, started = new_id(), time.monotonic()
        first = latest = await self._claim(self.key, token)
        if first.new:
            return await self._publish(token, self.key, token, started)
        turn = 0
        while time.monotonic() - started <= 2 * (self.deadline + _MARGIN):
            record = await self._appears(first.task_id, latest)
            if record is not None:
                return record.id, record
            # Whoever claimed it last has had the time that publishing may take: they have failed, or they are dead.
            asked = time.monotonic()
            again = await self._claim(self.key, token)
            if again.new:
                return await self._publish(token, self.key, token, asked)
            if again.task_id != first.task_id:
                first = latest = again
                turn = 0
                continue
            # Of those who notice, one takes the turn of the dead, as a claim of its own, and the others wait for it.
            turn += 1
            key = f"{self.key}:{first.task_id}:{turn}"
            latest = await self._claim(key, token)
            if latest.new:
                return await self._publish(first.task_id, key, token, asked)
        raise PublishTimeout("Another request with this idempotency key has not enqueued its task yet.")

    async def _claim(self, key: str, token: str) -> KeyClaim:
        claim = await self._ask(self.store.claim_key(key, self.fingerprint, token, expires=self.expires))
        if claim.fingerprint != self.fingerprint:
            raise KeyReused
        return claim

    async def _publish(
        self, task_id: str, key: str, token: str, started: float
    ) -> tuple[str, TaskRecord | None]:
        late = time.monotonic() - started
        # What is published with the same deadline goes in one batch, so it is not shortened by what others allow for.
        left = self.deadline if late < _MARGIN / 2 else self.deadline - late
        if left <= 0:
            raise PublishTimeout  # somebody else may have taken over
        try:
            await self.publish(task_id, left)
        except PublishTimeout:
            raise
        except Exception:
            await self._release(task_id, key, token)
            raise
        return task_id, None

    async def _release(self, task_id: str, key: str, token: str) -> None:
        try:
            # The record first: one that others find stands for a task that was published.
            await self._ask(self.store.forget([task_id]))
            await self._ask(self.store.release_key(key, token))
        except StoreError as exc:
            _log.warning(
                "The idempotency key of the task %s, which was not enqueued, stays: %s", task_id, exc
            )

    async def _appears(self, task_id: str, claim: KeyClaim) -> TaskRecord | None:
        """The task's record, which is waited for as long as the one with the claim may take to publish it."""
        if (record := await self._record(task_id)) is not None:
            return record
        longest = self.deadline + _MARGIN
        seconds = min(longest, claim.at.timestamp() + longest + _SKEW - time.time())
        if seconds <= 0:
            return None
        end = asyncio.get_running_loop().time() + seconds
        async with self.store.watch(task_id) as watch:
            try:
                async with asyncio.timeout_at(end):
                    while (record := await self._record(task_id)) is None:
                        await watch.changed()
            except TimeoutError:
                return await self._record(task_id)
        return record

    async def _record(self, task_id: str) -> TaskRecord | None:
        return (await self._ask(self.store.get([task_id]))).get(task_id)

    async def _ask(self, answer: Awaitable[T]) -> T:
        """What the store says. One that is stuck must not hold the request for longer than a stuck broker would."""
        try:
            async with asyncio.timeout(self.deadline):
                return await answer
        except TimeoutError:
            raise StoreUnavailable(f"The store did not answer within {self.deadline:g} seconds.") from None
