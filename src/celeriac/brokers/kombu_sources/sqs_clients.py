"""Clients of Amazon SQS, and the queues that they know, by the same URL and options as kombu's transport has."""

from __future__ import annotations

import re
import string
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from kombu.utils.url import parse_url

from celeriac.brokers.kombu_sources.sqs_errors import is_no_such_queue, refused

__all__ = ["FIFO", "MOST_WAIT", "SQSClients"]

#: Seconds that SQS waits for a first message, at most.
MOST_WAIT = 20

#: Seconds for which SQS keeps messages that nobody takes, at most; its own default is four days.
_RETENTION = 14 * 24 * 3600

#: What the name of a FIFO queue ends with.
FIFO = ".fifo"

#: As kombu has it: dots become hyphens, all other punctuation underscores.
_PUNCTUATION = {ord(each): "_" for each in string.punctuation if each not in "-_."} | {ord("."): "-"}
_NAME = re.compile(r"[A-Za-z0-9_-]{1,80}(\.fifo)?")


#: Clients are for any number of threads, and what makes them is for one at a time. It reads what Amazon's services are,
#: which takes longer than all the rest.
_sessions = threading.Lock()


@lru_cache(maxsize=16)
def _session(region: str | None, key: str | None, secret: str | None, token: str | None) -> boto3.Session:
    return boto3.Session(
        region_name=region, aws_access_key_id=key, aws_secret_access_key=secret, aws_session_token=token
    )


@dataclass(slots=True)
class _Client:
    client: Any
    until: float | None = None  # when its credentials expire, in epoch seconds


class SQSClients:
    """The clients of one source: one for all queues, or one for each of ``predefined_queues``.

    Args:
        url: ``sqs://``, ``sqs://key:secret@`` or ``sqs://key:secret@host:port``.
        options: Celery's ``broker_transport_options``, as kombu's SQS transport knows them.
        lease: Seconds of the ``VisibilityTimeout`` of queues that are made; celeriac names its own each time.
    """

    def __init__(self, url: str, options: Mapping[str, Any], lease: float) -> None:
        parts = parse_url(url)
        self._options = options
        self._lease = lease
        self._login = (parts["userid"], parts["password"])
        self._host, self._port = parts["hostname"], parts["port"]
        self._secure: bool | None = options.get("is_secure")
        self._prefix = str(options.get("queue_name_prefix") or "")
        self._predefined: Mapping[str, Mapping[str, Any]] = options.get("predefined_queues") or {}
        self._region: str | None = options.get("region")
        self._clients: dict[str, _Client] = {}
        self._urls: dict[str, str] = {}

    @property
    def region(self) -> str:
        """Where, as far as it is said here; the client may find it in Amazon's own settings."""
        return self._region or ""

    @property
    def prefix(self) -> str:
        """What the names of all queues begin with."""
        return self._prefix

    def client_for(self, queue: str) -> Any:
        """The client for a queue. Raises BrokerUnavailable for one that is not predefined where others are."""
        known = self._known(queue)
        key = queue if self._predefined else ""
        found = self._clients.get(key)
        if found is None or (found.until is not None and found.until <= time.time()):
            found = self._clients[key] = self._new_client(known)
        return found.client

    def url_of(self, queue: str) -> str:
        """The URL of a queue that is there. Raises ClientError if it is not."""
        if queue not in self._urls:
            known = self._known(queue)
            self._urls[queue] = (
                known["url"]
                if known
                else self.client_for(queue).get_queue_url(QueueName=self.name_of(queue))["QueueUrl"]
            )
        return self._urls[queue]

    def declared(self, queue: str) -> str:
        """The URL of a queue, which is made if it is not there."""
        try:
            return self.url_of(queue)
        except ClientError as exc:
            if not is_no_such_queue(exc):
                raise
        attributes = {
            "VisibilityTimeout": str(max(1, round(self._lease))),
            "MessageRetentionPeriod": str(_RETENTION),
            **({"FifoQueue": "true"} if queue.endswith(FIFO) else {}),
            **(self._options.get("sqs-creation-attributes") or {}),
        }
        tags = self._options.get("queue_tags")
        answer = self.client_for(queue).create_queue(
            QueueName=self.name_of(queue), Attributes=attributes, **({"tags": tags} if tags else {})
        )
        self._urls[queue] = answer["QueueUrl"]
        return self._urls[queue]

    def forget(self, queue: str) -> bool:
        """The queue is not there any more. Returns whether it may be made again."""
        self._urls.pop(queue, None)
        return not self._predefined

    def check(self, queue: str) -> None:
        """Raise BrokerUnavailable for a queue that there cannot be."""
        if not self._known(queue):
            self.name_of(queue)

    def name_of(self, queue: str) -> str:
        """What SQS calls a queue: the same as kombu does. Raises BrokerUnavailable for what cannot be a name."""
        name = self._prefix + queue
        stem, suffix = (name[: -len(FIFO)], FIFO) if name.endswith(FIFO) else (name, "")
        name = stem.translate(_PUNCTUATION) + suffix
        if not _NAME.fullmatch(name) or len(name) > 80:
            raise refused(
                f"{queue!r} cannot be the name of a queue in SQS: use 1 to 80 letters, digits, - and _, "
                "the prefix included."
            )
        return name

    def close(self) -> None:
        """End the connections."""
        for each in self._clients.values():
            each.client.close()
        self._clients.clear()
        self._urls.clear()

    def _known(self, queue: str) -> Mapping[str, Any]:
        if not self._predefined:
            return {}
        if queue not in self._predefined:
            raise refused(
                f"The queue {queue!r} is not among predefined_queues in broker_transport_options: add it there, with "
                "its url."
            )
        return self._predefined[queue]

    def _new_client(self, known: Mapping[str, Any]) -> _Client:
        key, secret, token = (
            known.get("access_key_id") or self._login[0],
            known.get("secret_access_key") or self._login[1],
            known.get("session_token"),
        )
        until: float | None = None
        if known and (role := self._options.get("sts_role_arn")):
            key, secret, token, until = self._assumed(role)
        region = known.get("region") or self._region
        config = Config(
            connect_timeout=5,
            read_timeout=MOST_WAIT + 10,
            retries={"mode": "standard", "total_max_attempts": 2},
        ).merge(Config(**(self._options.get("client-config") or {})))
        with _sessions:
            session = _session(region, key or None, secret or None, token)
            client = session.client(
                "sqs",
                region_name=session.region_name or "us-east-1",
                use_ssl=self._secure is not False,
                endpoint_url=self._endpoint(),
                config=config,
            )
        return _Client(client, until)

    def _endpoint(self) -> str | None:
        if not self._host:
            return None
        scheme = "https" if self._secure else "http"
        return f"{scheme}://{self._host}" + (f":{self._port}" if self._port else "")

    def _assumed(self, role: str) -> tuple[str, str, str, float]:
        answer = boto3.client("sts").assume_role(
            RoleArn=role,
            RoleSessionName="Celery",
            DurationSeconds=int(self._options.get("sts_token_timeout") or 900),
        )
        given = answer["Credentials"]
        until = given["Expiration"].timestamp() - float(self._options.get("sts_token_buffer_time") or 60)
        return given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"], until
