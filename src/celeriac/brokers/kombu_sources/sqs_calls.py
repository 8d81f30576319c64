"""Calls of Amazon SQS: for one queue, for up to ten messages of it, and for many such batches at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from botocore.exceptions import ClientError

from celeriac.brokers.kombu_sources.sqs_clients import FIFO, SQSClients
from celeriac.brokers.kombu_sources.sqs_errors import explained, is_no_such_queue
from celeriac.errors import BrokerUnavailable

__all__ = ["TEN", "Batch", "Failed", "SQSCalls"]

#: Messages in one call.
TEN = 10

#: Calls at a time where there is more than one batch.
_AT_ONCE = 4
#: Attempts for the messages of a batch that SQS could not take for reasons of its own.
_ATTEMPTS = 4

Entry = dict[str, Any]


class Batch(NamedTuple):
    """Up to ten messages of one queue, each as its call wants it, and by what number whoever made them knows them."""

    queue: str
    entries: Sequence[Entry]
    numbers: Sequence[int]


class Failed(NamedTuple):
    """A message of a batch that SQS refused."""

    number: int
    code: str
    said: str


class SQSCalls:
    """Calls by the clients of one source. ``place`` is its URL without secrets."""

    def __init__(self, clients: SQSClients, place: str) -> None:
        self._clients = clients
        self._place = place
        self._pool: ThreadPoolExecutor | None = None

    def close(self) -> None:
        """End the threads and the connections."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        self._clients.close()

    def call(self, queue: str, operation: str, *, make: bool = False, **arguments: Any) -> Any:
        """Call for a queue; one that has gone is looked up again, or made, once.

        Raises ClientError if there is no such queue, BrokerUnavailable for all else that SQS answers, and what else
        the driver raises when there is no answer.
        """
        try:
            return self._call(queue, operation, make, arguments)
        except ClientError as exc:
            if not is_no_such_queue(exc):
                raise explained(exc, self._place) from exc
            if not self._clients.forget(queue):
                raise
        try:
            return self._call(queue, operation, make, arguments)
        except ClientError as exc:
            if not is_no_such_queue(exc):
                raise explained(exc, self._place) from exc
            raise

    def _call(self, queue: str, operation: str, make: bool, arguments: dict[str, Any]) -> Any:
        url = self._clients.declared(queue) if make else self._clients.url_of(queue)
        return getattr(self._clients.client_for(queue), operation)(QueueUrl=url, **arguments)

    def batch(self, batch: Batch, operation: str, *, make: bool = False) -> list[Failed]:
        """Call for up to ten messages. Returns those that SQS refuses; raises as ``call`` does.

        What it could not do for reasons of its own is tried again.
        """
        refused: list[Failed] = []
        left = dict(zip(batch.numbers, batch.entries, strict=True))
        for attempt in range(_ATTEMPTS):
            entries = [{**entry, "Id": str(number)} for number, entry in left.items()]
            answer = self.call(batch.queue, operation, make=make, Entries=entries)
            failed = answer.get("Failed") or []
            refused += [_failed(each) for each in failed if each.get("SenderFault")]
            later = [_failed(each) for each in failed if not each.get("SenderFault")]
            left = {each.number: left[each.number] for each in later}
            if not left:
                return refused
            if attempt + 1 < _ATTEMPTS:
                time.sleep(0.1 * 2**attempt)
        return [*refused, *later]

    def all(self, call: Callable[[Batch], None], batches: Sequence[Batch]) -> None:
        """Call for each batch, several at a time unless order matters. ``call`` raises nothing."""
        if len(batches) < 2 or any(batch.queue.endswith(FIFO) for batch in batches):
            for batch in batches:
                call(batch)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="celeriac-sqs")
        for queue in {batch.queue for batch in batches}:
            self._clients.client_for(queue)  # made by this thread alone
        for done in [self._pool.submit(call, batch) for batch in batches]:
            done.result()

    def explained(self, failed: Failed, operation: str) -> BrokerUnavailable:
        """The error for a message that SQS refused."""
        answer = {"Error": {"Code": failed.code, "Message": failed.said}}
        return explained(ClientError(answer, operation), self._place)


def _failed(answer: dict[str, Any]) -> Failed:
    return Failed(int(answer["Id"]), str(answer.get("Code") or ""), str(answer.get("Message") or ""))
