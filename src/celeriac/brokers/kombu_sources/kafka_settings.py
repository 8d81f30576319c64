"""The settings of librdkafka's clients: ours, then those of the URL, then those of the user, as kombu names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = ["KafkaSettings"]

_PORT = 9092

#: A server that comes back is found within a second, one that has fallen silent is given up after ten.
_COMMON: dict[str, Any] = {
    "client.id": "celeriac",
    "reconnect.backoff.max.ms": 1000,
    "socket.keepalive.enable": True,
    "socket.timeout.ms": 10_000,
    "log_level": 0,  # what goes wrong is told by errors
}

#: A retried write is not doubled; messages of one batch go to different partitions, and so to different workers.
_PRODUCER: dict[str, Any] = {"enable.idempotence": True, "sticky.partitioning.linger.ms": 0}

#: A worker that was killed is missed after 6 seconds, which is the least that servers allow unless told otherwise. One
#: that has had no slot free for 30 leaves its partitions to others.
_CONSUMER: dict[str, Any] = {
    "auto.offset.reset": "earliest",
    "enable.auto.commit": False,
    "session.timeout.ms": 6000,
    "heartbeat.interval.ms": 2000,
    "max.poll.interval.ms": 30_000,
}

#: Bytes of a record beside its value, at most.
_OVERHEAD = 100


class KafkaSettings:
    """What a URL and ``broker_transport_options`` say about Kafka.

    Args:
        url: ``kafka://[user:password@]host[:port][;kafka://other[:port]]``.
        options: Those of kombu's transport; see there.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._options = options
        self._common = {**_COMMON, **_of_url(url, options), **(options.get("kafka_common_config") or {})}
        #: Seconds for a request of ours, and for a message to be confirmed.
        self.patience = float(options.get("connection_wait_time_seconds") or 5.0)
        #: How a topic is made that is not there: so many workers can share it. -1 leaves a number to the server.
        self.num_partitions = int(options.get("num_partitions") or 8)
        self.replication_factor = int(options.get("replication_factor") or -1)
        self.topic_config: dict[str, str] = dict(options.get("topic_config") or {})

    def admin(self) -> dict[str, Any]:
        """For the client that makes topics and asks for sizes."""
        return {**self._common, **self._of("kafka_admin_config")}

    def producer(self) -> dict[str, Any]:
        """For the client that puts."""
        timeout = {"message.timeout.ms": int(self.patience * 1000)}
        return {**_PRODUCER, **timeout, **self._common, **self._of("kafka_producer_config")}

    def consumer(self, topic: str) -> dict[str, Any]:
        """For the client that takes from one topic."""
        group = {"group.id": group_of(topic)}
        return {**_CONSUMER, **group, **self._common, **self._of("kafka_consumer_config")}

    @property
    def largest(self) -> int:
        """How many bytes an envelope may have."""
        return int(self.producer().get("message.max.bytes", 1_000_000)) - _OVERHEAD

    def _of(self, name: str) -> dict[str, Any]:
        return dict(self._options.get(name) or {})


def group_of(topic: str) -> str:
    """The consumer group of a topic, by kombu's rule: its workers share the topic with ours."""
    return f"{topic}-consumer-group"


def _of_url(url: str, options: Mapping[str, Any]) -> dict[str, Any]:
    parts = [urlsplit(each if "://" in each else f"kafka://{each}") for each in url.split(";") if each]
    servers = ",".join(f"{part.hostname or 'localhost'}:{part.port or _PORT}" for part in parts)
    found: dict[str, Any] = {"bootstrap.servers": servers}
    protocol = str(options.get("security_protocol") or "plaintext")
    if protocol.lower() != "plaintext":
        found["security.protocol"] = protocol
        found["sasl.mechanism"] = options.get("sasl_mechanism")
        found["sasl.username"] = unquote(parts[0].username or "")
        found["sasl.password"] = unquote(parts[0].password or "")
    return {name: value for name, value in found.items() if value}
