"""What Kafka, the network and librdkafka complain of, as one sentence with a cure."""

from __future__ import annotations

import re

from confluent_kafka import KafkaError, KafkaException

from celeriac.brokers.kombu_sources.refusals import refused
from celeriac.errors import BrokerUnavailable, ConfigurationError

__all__ = ["LOST", "error_of", "explained", "wrong_settings"]

#: A commit that is refused with one of these comes from a consumer whose partitions others have by now.
LOST = frozenset(
    [
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError._ASSIGNMENT_LOST,
        KafkaError._STATE,
    ]
)

_LOGIN = frozenset([KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED])
_RIGHTS = frozenset(
    [
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    ]
)

#: What is wrong with messages, and not with the servers. One by one they may be taken.
_TOO_LARGE = frozenset([KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE])

#: What the driver adds for those who look for its own faults.
_ASIDE = re.compile(r"^\S+/(bootstrap|\d+): | \(after .*\)$")


def error_of(exc: BaseException) -> KafkaError | None:
    """What an exception of the driver carries."""
    found = exc.args[0] if isinstance(exc, KafkaException) and exc.args else None
    return found if isinstance(found, KafkaError) else None


def wrong_settings(exc: BaseException) -> ConfigurationError | None:
    """The error for a setting that the driver does not take; ``None`` where something else is wrong."""
    error = error_of(exc)
    if error is None or error.code() not in {KafkaError._INVALID_ARG, KafkaError._CONFLICT}:
        return None
    return ConfigurationError(
        f"Kafka's client does not take what broker_transport_options say: {error.str().rstrip('.')}."
    )


def explained(exc: BaseException, heard: KafkaError | None, place: str) -> BrokerUnavailable:
    """The error for what went wrong with the servers at ``place``, a URL without secrets.

    ``heard`` is what a client said in the background meanwhile, which is more than that it gave up.
    """
    error = error_of(exc)
    if error is None:
        return BrokerUnavailable(f"Kafka at {place} cannot be reached: {exc or type(exc).__name__}.")
    if heard is not None and error.code() < 0:
        error = heard
    code, said = error.code(), _ASIDE.sub("", error.str()).rstrip(".")
    if code in _LOGIN:
        return refused(
            f"Kafka at {place} refused the login: check user and password in the broker's URL, and security_protocol "
            "and sasl_mechanism in broker_transport_options."
        )
    if code in _RIGHTS:
        return refused(f"Kafka at {place} does not let this user do that ({said}): grant it the permission.")
    if code in _TOO_LARGE:
        return refused(
            f"Kafka at {place} refused a message ({said}): send less, or raise max.message.bytes of the topic."
        )
    if "Invalid response size" in said:
        return refused(
            f"What answers at {place} does not speak Kafka's protocol: check the port in the broker's URL."
        )
    if code == KafkaError._SSL or "SSL" in said:
        return refused(
            f"There is no TLS connection to Kafka at {place} ({said}): check that the port speaks TLS, and "
            "ssl.ca.location in the kafka_common_config of broker_transport_options."
        )
    if code == KafkaError.INVALID_REPLICATION_FACTOR:
        return refused(
            f"Kafka at {place} cannot make the topic: {said}. "
            "Set replication_factor in broker_transport_options."
        )
    if code > 0:
        return BrokerUnavailable(f"Kafka at {place} answered with an error: {said}.")
    return BrokerUnavailable(f"Kafka at {place} cannot be reached: {said}.")
