"""What RabbitMQ, the network and the driver complain of, as one sentence with a cure."""

from __future__ import annotations

import asyncio
import errno
import re
import socket
import ssl

from aiormq import exceptions as amqp

from celeriac.errors import BrokerUnavailable

__all__ = ["DRIVER_ERRORS", "explained", "is_other_arguments", "refused", "unconfirmed"]

#: Bytes that no frame of RabbitMQ's has.
_LARGEST_FRAME = 2**24

#: All that the driver raises when a server or a connection fails.
DRIVER_ERRORS = (amqp.AMQPError, ConnectionError, OSError, EOFError, asyncio.InvalidStateError, RuntimeError)


def refused(sentence: str) -> BrokerUnavailable:
    """An error that waiting does not cure."""
    error = BrokerUnavailable(sentence)
    error.permanent = True
    return error


def is_other_arguments(exc: BaseException) -> bool:
    """Whether a queue or an exchange is there already, declared in another way."""
    return isinstance(exc, amqp.ChannelPreconditionFailed) and "inequivalent arg" in str(exc)


def explained(exc: BaseException, place: str) -> BrokerUnavailable:
    """The error for what went wrong with the server at ``place``, a URL without secrets."""
    if isinstance(exc, BrokerUnavailable):
        return exc
    if isinstance(exc, TimeoutError):
        return BrokerUnavailable(f"RabbitMQ at {place} does not answer.")
    if isinstance(exc, asyncio.CancelledError):
        # So the driver ends what waits for a connection whose heartbeat has stopped.
        return BrokerUnavailable(
            f"RabbitMQ at {place} has fallen silent, and the connection to it was given up."
        )
    said = _said(exc)
    cause = exc.__cause__ or exc
    if is_other_arguments(exc):
        return refused(_other_arguments(said, place))
    if isinstance(exc, amqp.ChannelPreconditionFailed) and "invalid " in said:
        return refused(_invalid(said, place))
    if (
        isinstance(exc, amqp.AuthenticationError | amqp.ProbableAuthenticationError)
        or "ACCESS_REFUSED" in said
    ):
        if "access to" in said:
            return refused(
                f"RabbitMQ at {place} does not let this user do that ({said}): grant it the permission."
            )
        return refused(f"RabbitMQ at {place} refused the login: check user and password in the broker's URL.")
    if "NOT_ALLOWED" in said or "Connection.OpenOk" in said:
        # The driver keeps what the server said to itself.
        return refused(
            f"RabbitMQ at {place} does not let this user into this virtual host: check the path of the broker's URL, "
            "create the virtual host, or grant the user permissions on it."
        )
    if isinstance(cause, ssl.SSLError) or "SSL" in said or "TLS" in said:
        return refused(
            f"There is no TLS connection to RabbitMQ at {place} ({said}): check that the port speaks TLS and that "
            "broker_use_ssl names the authority of its certificate."
        )
    if (
        isinstance(exc, amqp.IncompatibleProtocolError)
        or "Unexpected AMQP protocol header" in said
        or _is_no_frame(said)
    ):
        return refused(
            f"What answers at {place} does not speak AMQP 0-9-1: check the port in the broker's URL."
        )
    cure = ": check host and port in the broker's URL, and whether the server runs" if _is_nobody(exc) else ""
    return BrokerUnavailable(f"RabbitMQ at {place} cannot be reached: {said or type(exc).__name__}{cure}.")


def unconfirmed(exc: BaseException, place: str) -> BrokerUnavailable:
    """The error for what went wrong after messages were sent; the server may have them if it was the connection."""
    error = explained(exc, place)
    error.unconfirmed = not error.permanent and not isinstance(exc, amqp.AMQPChannelError)
    return error


def _other_arguments(said: str, place: str) -> str:
    found = re.search(
        r"inequivalent arg '([^']*)' for (\w+) '([^']*)' .*?: received (.*) but current is (.*)", said
    )
    if found is None:
        return f"RabbitMQ at {place} has a queue that was declared otherwise: {said}."
    argument, what, name, ours, theirs = found.groups()
    if name.startswith("celery_delayed_"):
        cure = "set broker_native_delayed_delivery_queue_type to what it is"
    elif argument == "x-queue-type" and "quorum" in ours:
        cure = (
            'set task_default_queue_type = "classic", or task_create_missing_queue_type if task_queues does not name '
            "it, or declare it in task_queues as it is"
        )
    else:
        cure = "declare it in task_queues as it is"
    return (
        f"The {what} {name!r} exists in RabbitMQ at {place} with another {argument} ({theirs.rstrip('.')}, here it is "
        f"{ours}): {cure}, or delete it there once it is empty."
    )


def _invalid(said: str, place: str) -> str:
    """What the server says of a declaration that it can never accept."""
    if "x-max-priority" in said and "quorum" in said:
        return (
            f"Quorum queues of RabbitMQ at {place} have no x-max-priority ({said}): set task_default_queue_type and "
            'task_create_missing_queue_type to "classic", or leave out task_queue_max_priority and max_priority.'
        )
    return f"RabbitMQ at {place} cannot make a queue or exchange ({said}): correct it in task_queues."


def _is_no_frame(said: str) -> bool:
    """Whether the driver took a text for a frame, whose length is then out of all reason."""
    found = re.search(r"but (\d+) bytes expected", said)
    return found is not None and int(found[1]) > _LARGEST_FRAME


def _is_nobody(exc: BaseException) -> bool:
    """Whether no connection came about: nobody listens there, or nobody is called so."""
    number = exc.args[0] if exc.args else None
    return number == errno.ECONNREFUSED or isinstance(exc.__cause__ or exc, socket.gaierror)


def _said(exc: BaseException) -> str:
    parts = exc.args[1:] if len(exc.args) > 1 and type(exc.args[0]) is int else exc.args  # without an errno
    words = [str(part) for part in parts if part not in (None, "")] or [str(exc)]
    return " ".join(words).strip().rstrip(".")
