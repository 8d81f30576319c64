"""What Amazon SQS and its client complain of, as one sentence with a cure."""

from __future__ import annotations

from botocore import exceptions as boto
from botocore.exceptions import BotoCoreError, ClientError

from celeriac.errors import BrokerUnavailable

__all__ = ["DRIVER_ERRORS", "code_of", "explained", "is_no_such_queue", "is_unknown_message", "refused"]

#: All that the driver raises when a server or a connection fails.
DRIVER_ERRORS = (ClientError, BotoCoreError, OSError)

#: The access key is not known, or its secret does not fit.
_KEY = frozenset(
    {
        "AuthFailure",
        "IncompleteSignature",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired"})
_DENIED = frozenset({"AccessDenied", "AccessDeniedException"})
_NO_QUEUE = frozenset({"AWS.SimpleQueueService.NonExistentQueue", "NonExistentQueue", "QueueDoesNotExist"})
#: The receipt handle stands for nothing that could be held: deleted, taken by somebody else, or visible again.
_UNKNOWN = frozenset(
    {
        "AWS.SimpleQueueService.MessageNotInflight",
        "InvalidParameterValue",
        "MessageNotInflight",
        "ReceiptHandleIsInvalid",
    }
)
_TOO_LONG = ("BatchRequestTooLong", "MessageTooLong", "must be shorter than")


def refused(sentence: str) -> BrokerUnavailable:
    """An error that waiting does not cure."""
    error = BrokerUnavailable(sentence)
    error.permanent = True
    return error


def code_of(exc: BaseException) -> str:
    """What SQS calls the error, or nothing."""
    return str(exc.response.get("Error", {}).get("Code", "")) if isinstance(exc, ClientError) else ""


def is_no_such_queue(exc: BaseException) -> bool:
    """Whether the queue is not there, or not any more."""
    return code_of(exc) in _NO_QUEUE


def is_unknown_message(code: str) -> bool:
    """Whether a message of a batch is not ours any more, by the code of its failure."""
    return code in _UNKNOWN


def explained(exc: BaseException, place: str) -> BrokerUnavailable:
    """The error for what went wrong with SQS at ``place``, a URL without secrets."""
    if isinstance(exc, BrokerUnavailable):
        return exc
    if isinstance(exc, ClientError):
        return _answered(exc, place)
    if isinstance(
        exc, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError
    ):
        return refused(
            f"There are no complete credentials for SQS at {place}: give them in the broker's URL "
            "(sqs://key:secret@), in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or by a role of the machine."
        )
    if isinstance(exc, boto.SSLError):
        return refused(
            f"There is no TLS connection to SQS at {place} ({_said(exc)}): set is_secure to False in "
            "broker_transport_options if it speaks plain HTTP."
        )
    if isinstance(exc, boto.InvalidRegionError | boto.NoRegionError | boto.UnknownRegionError):
        return refused(
            f"The region of SQS is not valid: set region in broker_transport_options ({_said(exc)})."
        )
    return BrokerUnavailable(f"SQS at {place} cannot be reached: {_said(exc)}.")


def _answered(exc: ClientError, place: str) -> BrokerUnavailable:
    code, said = code_of(exc), _said(exc)
    if code in _KEY:
        return refused(
            f"SQS at {place} refused the access key ({code}): check the key and the secret in the broker's URL or in "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; characters such as + and / in a URL are written as %2B and "
            "%2F."
        )
    if code in _EXPIRED:
        return refused(f"The credentials for SQS at {place} have expired: get new ones, or use a role.")
    if code in _DENIED:
        return refused(
            f"SQS at {place} does not allow {exc.operation_name} ({said}): grant sqs:{exc.operation_name} for this "
            "queue; docs/sqs.md lists what is needed."
        )
    if code in _NO_QUEUE:
        return refused(
            f"SQS at {place} has no such queue ({said}): create it, or correct its url in predefined_queues."
        )
    if code == "OverLimit" or code.endswith(".OverLimit"):
        return BrokerUnavailable(
            f"SQS at {place} hands over no more: 120,000 messages of the queue are held by workers already."
        )
    if code.startswith(("KMS", "Kms")):
        return refused(
            f"SQS at {place} cannot use the key that encrypts the queue ({said}): grant kms:GenerateDataKey and "
            "kms:Decrypt."
        )
    if code.endswith("PurgeQueueInProgress"):
        return BrokerUnavailable(
            f"SQS at {place} purges a queue once in 60 seconds at most: try again in a minute."
        )
    if any(each in code or each in said for each in _TOO_LONG):
        return refused(
            f"A message is too large for its queue in SQS at {place} ({said}): send a reference instead of the data, "
            "or raise the queue's MaximumMessageSize (1 MiB at most)."
        )
    return BrokerUnavailable(f"SQS at {place} answered with an error: {code}: {said}.")


def _said(exc: BaseException) -> str:
    said = exc.response.get("Error", {}).get("Message", "") if isinstance(exc, ClientError) else str(exc)
    return " ".join(str(said).split()).rstrip(".") or type(exc).__name__
