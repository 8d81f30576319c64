"""Amazon SQS: the queues and the wire format of kombu's transport, by batches of ten, with leases that are renewed.

kombu's own channel stands on pycurl and takes and deletes message by message; this one calls Amazon's client itself.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any
from uuid import uuid4

from botocore.exceptions import ClientError

from celeriac.brokers.base import Capabilities
from celeriac.brokers.kombu_sources.base import Taken
from celeriac.brokers.kombu_sources.held import HeldSource, Sealed
from celeriac.brokers.kombu_sources.places import cleansed
from celeriac.brokers.kombu_sources.sqs_calls import TEN, Batch, SQSCalls
from celeriac.brokers.kombu_sources.sqs_clients import FIFO, MOST_WAIT, SQSClients
from celeriac.brokers.kombu_sources.sqs_errors import (
    DRIVER_ERRORS,
    explained,
    is_no_such_queue,
    is_unknown_message,
    refused,
)
from celeriac.errors import BrokerUnavailable

__all__ = ["SQSSource"]

#: Bytes of a message, and of all in one call together, that every queue takes unless its owner has said less.
_SURELY_TAKEN = 256 * 1024
#: Bytes that no queue takes more of.
_LARGEST = 1024 * 1024

#: Seconds of a message's own delay, and of its invisibility since it was received.
_LONGEST_DELAY = 900.0
_LONGEST_HOLD = 12 * 3600.0

_COUNT = "ApproximateReceiveCount"
#: An attribute of ours: how often earlier copies of the message were delivered.
_DELIVERIES = "celeriac.deliveries"

_BASE64 = re.compile(rb"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")


class SQSSource(HeldSource):
    """One client of Amazon SQS, or of a server that speaks its protocol."""

    capabilities = Capabilities(
        priority=False,
        atomic=False,
        fanout=False,
        peek=False,
        shared_view=False,
        any_text=False,
        any_size=False,
        ordered=False,
    )
    longest_delay = _LONGEST_DELAY
    longest_hold = _LONGEST_HOLD
    beside_envelope = frozenset({"message_attributes"})
    errors = DRIVER_ERRORS
    polling_interval = 1.0

    def __init__(self, url: str, *, options: Mapping[str, Any] | None = None, lease: float = 30.0) -> None:
        super().__init__(url, options=options, lease=lease)
        self._encoded = bool(self.options.get("sqs_base64_encoding", True))
        self._clients = SQSClients(url, self.options, lease)
        self._calls = SQSCalls(self._clients, self.place)
        self._turn = 0

    @property
    def identity(self) -> str:
        """The place with its region and prefix."""
        return f"{self.place}?region={self._clients.region}&prefix={self._clients.prefix}"

    @property
    def longest_wait(self) -> float:
        """``wait_time_seconds``, 10 by default, and never longer than half a lease: it begins while SQS waits."""
        wanted = int(self.options.get("wait_time_seconds", 10))
        return float(max(0, min(wanted, MOST_WAIT, int(self.lease // 2))))

    def delay_in(self, queue: str) -> float:
        """15 minutes; a FIFO queue delays no message of its own."""
        return 0.0 if queue.endswith(FIFO) else _LONGEST_DELAY

    def keeps_order_in(self, queue: str) -> bool:
        """Whether it is a FIFO queue."""
        return queue.endswith(FIFO)

    def open(self) -> None:
        """Be ready: there is no connection before the first call."""

    def close(self) -> None:
        """End the connections."""
        self._calls.close()

    def explained(self, exc: BaseException) -> BrokerUnavailable:
        """The error in one sentence, without the secret."""
        error = explained(exc, self.place)
        error.args = (cleansed(str(error), self.url),)
        return error

    # -- sending ---------------------------------------------------------------------------------------------------

    def check(self, message: Sealed) -> None:
        """Refuse what no queue takes, and what cannot be the name of one."""
        self._clients.check(message.queue)
        size = len(message.envelope)
        if self._encoded:
            size = -(-size // 3) * 4
        if size > _LARGEST:
            raise refused(
                f"A message for {message.queue!r} has {size:,} bytes in base64, and SQS takes {_LARGEST:,} at most: "
                "send a reference instead of the data, such as an upload."
            )

    def send(self, messages: Sequence[Sealed]) -> Mapping[int, Exception]:
        """Send by tens. What a queue may find too large goes alone."""
        failed: dict[int, Exception] = {}

        def send(batch: Batch) -> None:
            try:
                for each in self._calls.batch(batch, "send_message_batch", make=True):
                    failed[each.number] = self._calls.explained(each, "SendMessage")
            except (*DRIVER_ERRORS, BrokerUnavailable) as exc:
                failed.update(dict.fromkeys(batch.numbers, exc))

        numbered = sorted(enumerate(messages), key=lambda pair: pair[1].queue)
        batches: list[Batch] = []
        for queue, group in groupby(numbered, lambda pair: pair[1].queue):
            batches += _by_tens(queue, [(number, self._entry(each)) for number, each in group])
        self._calls.all(send, batches)
        return failed

    def _entry(self, message: Sealed) -> dict[str, Any]:
        body = base64.b64encode(message.envelope) if self._encoded else message.envelope
        entry: dict[str, Any] = {"MessageBody": body.decode("utf-8", "replace")}
        given = message.properties
        attributes = dict(given.get("message_attributes") or {})
        if message.deliveries:
            attributes[_DELIVERIES] = {"DataType": "Number", "StringValue": str(message.deliveries)}
        if attributes:
            entry["MessageAttributes"] = attributes
        if message.queue.endswith(FIFO):
            entry["MessageGroupId"] = str(given.get("MessageGroupId") or "default")
            entry["MessageDeduplicationId"] = str(given.get("MessageDeduplicationId") or uuid4())
            return entry
        if given.get("MessageGroupId"):
            entry["MessageGroupId"] = str(given["MessageGroupId"])
        if message.delay > 0:
            entry["DelaySeconds"] = min(math.ceil(message.delay), int(_LONGEST_DELAY))
        return entry

    # -- taking ----------------------------------------------------------------------------------------------------

    def take(self, queues: Sequence[str], limit: int, wait: float) -> list[Taken]:
        """Receive by tens, in turn. ``wait`` is for one queue alone, and cannot be cut short."""
        self._turn += 1
        start = self._turn % max(1, len(queues))
        active = [*queues[start:], *queues[:start]]
        wait = int(wait) if len(active) == 1 else 0
        taken: list[Taken] = []
        while active and len(taken) < limit:
            for others, queue in zip(range(len(active), 0, -1), list(active), strict=True):
                share = min(TEN, math.ceil((limit - len(taken)) / others))
                if share <= 0:
                    break
                try:
                    found = self._receive(queue, share, 0 if taken else int(wait))
                except (*DRIVER_ERRORS, BrokerUnavailable):
                    if taken:  # nobody else could have them for a lease; what is wrong will be so again
                        return taken
                    raise
                taken += found
                if len(found) < share:
                    active.remove(queue)
        return taken

    def _receive(self, queue: str, count: int, wait: int) -> list[Taken]:
        answer = self._calls.call(
            queue,
            "receive_message",
            make=True,
            MaxNumberOfMessages=count,
            VisibilityTimeout=_whole(self.lease),
            WaitTimeSeconds=wait,
            MessageSystemAttributeNames=[_COUNT],
            MessageAttributeNames=[_DELIVERIES],
        )
        return [_taken(queue, each) for each in answer.get("Messages") or ()]

    # -- ending ----------------------------------------------------------------------------------------------------

    def finish(self, taken: Sequence[Taken]) -> None:
        """Delete; what is gone already is no error."""
        self._end("delete_message_batch", taken)

    def give_back(self, taken: Sequence[Taken]) -> None:
        """Make them visible at once; what is gone already is no error."""
        self._end("change_message_visibility_batch", taken, VisibilityTimeout=0)

    def renew(self, taken: Sequence[Taken], lease: float) -> Sequence[Taken]:
        """Keep them invisible for ``lease`` seconds from now. Returns those that are not ours any more."""
        seconds = min(_whole(lease), int(_LONGEST_HOLD)) if lease > 0 else 0
        return self._end("change_message_visibility_batch", taken, VisibilityTimeout=seconds)

    def _end(self, operation: str, taken: Sequence[Taken], **more: Any) -> list[Taken]:
        """Call for the messages by tens. Returns those that SQS does not know by their receipt handles."""
        unknown: set[int] = set()
        errors: list[Exception] = []

        def end(batch: Batch) -> None:
            try:
                for each in self._calls.batch(batch, operation):
                    if is_unknown_message(each.code):
                        unknown.add(each.number)
                    else:
                        errors.append(self._calls.explained(each, operation))
            except (*DRIVER_ERRORS, BrokerUnavailable) as exc:
                if is_no_such_queue(exc):
                    unknown.update(batch.numbers)  # with the queue they are gone
                else:
                    errors.append(exc)

        numbered = sorted(enumerate(taken), key=lambda pair: pair[1].queue)
        batches: list[Batch] = []
        for queue, group in groupby(numbered, lambda pair: pair[1].queue):
            entries = [(number, {"ReceiptHandle": each.handle, **more}) for number, each in group]
            batches += [_batch(queue, entries[at : at + TEN]) for at in range(0, len(entries), TEN)]
        self._calls.all(end, batches)
        if errors:
            raise errors[0]
        return [taken[number] for number in sorted(unknown)]

    # -- looking ---------------------------------------------------------------------------------------------------

    def size(self, queue: str) -> int:
        """``ApproximateNumberOfMessages``: neither delayed nor invisible."""
        return self._counted(queue, "ApproximateNumberOfMessages")

    def purge(self, queue: str) -> int:
        """Delete all, what is delayed or held by a worker included."""
        waiting = self._counted(queue, "ApproximateNumberOfMessages", "ApproximateNumberOfMessagesDelayed")
        if waiting:
            self._calls.call(queue, "purge_queue")
        return waiting

    def _counted(self, queue: str, *names: str) -> int:
        try:
            answer = self._calls.call(queue, "get_queue_attributes", AttributeNames=list(names))
        except ClientError as exc:
            if is_no_such_queue(exc):
                return 0
            raise
        return sum(_number(answer["Attributes"].get(name)) for name in names)


def _batch(queue: str, numbered: Sequence[tuple[int, dict[str, Any]]]) -> Batch:
    return Batch(queue, [entry for _, entry in numbered], [number for number, _ in numbered])


def _by_tens(queue: str, numbered: Sequence[tuple[int, dict[str, Any]]]) -> Iterator[Batch]:
    """Batches of ten at most, each small enough; one that is too large by itself goes alone."""
    batch: list[tuple[int, dict[str, Any]]] = []
    size = 0
    for number, entry in numbered:
        more = _size(entry)
        if batch and (len(batch) == TEN or size + more > _SURELY_TAKEN):
            yield _batch(queue, batch)
            batch, size = [], 0
        batch.append((number, entry))
        size += more
    if batch:
        yield _batch(queue, batch)


def _size(entry: Mapping[str, Any]) -> int:
    """Bytes as SQS counts them, attributes generously."""
    return len(entry["MessageBody"].encode()) + len(str(entry.get("MessageAttributes") or ""))


def _taken(queue: str, message: Mapping[str, Any]) -> Taken:
    deliveries = _number(message.get("Attributes", {}).get(_COUNT)) or 1
    before = message.get("MessageAttributes", {}).get(_DELIVERIES, {})
    deliveries += _number(before.get("StringValue"))
    return Taken(queue, _envelope(message["Body"]), message["ReceiptHandle"], deliveries)


def _envelope(body: str) -> bytes:
    """What is in a message, base64 or not; of a stranger's message the text as it is."""
    raw = body.encode("utf-8", "surrogatepass")
    candidate = raw.strip()
    if _BASE64.fullmatch(candidate):
        try:
            return base64.b64decode(candidate, validate=True)
        except (binascii.Error, ValueError):
            return raw
    return raw


def _whole(seconds: float) -> int:
    """SQS counts in whole seconds; never less than was asked for."""
    return max(1, math.ceil(seconds))


def _number(value: Any) -> int:
    try:
        return max(0, int(value))
    except (TypeError, ValueError):
        return 0
