"""Everything that celeriac raises, as one tree.

::

    CeleriacError
    ├── ConfigurationError            a setting, a URL or a missing extra
    ├── BrokerError
    │   ├── BrokerUnavailable         gone, refusing, locked, unreadable
    │   └── PublishTimeout            no confirmation before the deadline
    ├── StoreError
    │   └── StoreUnavailable
    ├── MalformedMessage              bytes that are no Celery message
    │   └── ContentDisallowed         a content type outside accept_content
    ├── InvalidArguments              a call that does not fit the task's signature
    ├── KeyReused                     an idempotency key that stands for another call
    ├── UploadError
    │   ├── UploadTooLarge            more bytes than celeriac_upload_limit
    │   ├── UploadGone                its content is not in the storage, or not any more
    │   └── StorageUnavailable        the storage of uploads is gone, full, refusing
    └── TaskError
        ├── TaskNotFound              an id without a record
        │   └── TaskExpired           it had one, which has expired
        ├── ResultTimeout             not ready in time
        ├── TaskFailed                the task raised; the record has the details
        ├── StillRunning              a test waited for tasks that did not end
        └── TaskRevoked               cancelled, revoked or expired before it finished

A class's docstring is its message when it is raised without one.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from celery import exceptions as celery_exceptions

__all__ = [
    "BrokerError",
    "BrokerUnavailable",
    "CeleriacError",
    "ConfigurationError",
    "ContentDisallowed",
    "InvalidArguments",
    "KeyReused",
    "MalformedMessage",
    "PublishTimeout",
    "ResultTimeout",
    "StillRunning",
    "StorageUnavailable",
    "StoreError",
    "StoreUnavailable",
    "TaskError",
    "TaskExpired",
    "TaskFailed",
    "TaskNotFound",
    "TaskRevoked",
    "UploadError",
    "UploadGone",
    "UploadTooLarge",
]


class CeleriacError(Exception):
    """celeriac could not do what was asked."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip().split("\n")[0])


class ConfigurationError(CeleriacError, celery_exceptions.ImproperlyConfigured):  # type: ignore[misc]
    """A setting is wrong or missing."""


class BrokerError(CeleriacError):
    """The broker did not do what was asked."""


class BrokerUnavailable(BrokerError, ConnectionError):
    """The broker cannot be reached.

    ``permanent`` means that waiting will not help: a damaged file, a missing right. ``unconfirmed`` means that the
    broker may have got what was published, and has not said so. ``why`` is the reason where it is known, without
    anything that strangers should not read: no host, no user, no path.
    """

    permanent: bool = False
    unconfirmed: bool = False
    why: str | None = None


class PublishTimeout(BrokerError, TimeoutError):
    """The broker did not confirm before the deadline; the task may or may not have been enqueued.

    Also raised, at once, where the connection ends on which the confirmation was waited for.
    """


class StoreError(CeleriacError):
    """The store did not do what was asked."""


class StoreUnavailable(StoreError, ConnectionError):
    """The store cannot be reached.

    ``permanent`` means that waiting will not help. ``why`` is the reason, as that of BrokerUnavailable.
    """

    permanent: bool = False
    why: str | None = None


class MalformedMessage(CeleriacError, ValueError):
    """The message is not a Celery message.

    ``task_id`` and ``task`` (the task's name) are set when the message gave them away before it failed.
    """

    task_id: str | None = None
    task: str | None = None


class ContentDisallowed(MalformedMessage):
    """The message's content type is not in accept_content."""


class InvalidArguments(CeleriacError, TypeError, ValueError):
    """The arguments do not fit the task's signature.

    ``errors`` lists what is wrong in pydantic's form, when pydantic found it.
    """

    def __init__(self, message: str | None = None, errors: list[Any] | None = None) -> None:
        super().__init__(message)
        self.errors: list[Any] = errors or []


class UploadError(CeleriacError):
    """Something about a file that a task is called with."""


class UploadTooLarge(UploadError, ValueError):
    """The upload is larger than celeriac_upload_limit allows."""


class UploadGone(UploadError, LookupError):
    """The content of the upload is not in the storage any more."""


class StorageUnavailable(UploadError, ConnectionError):
    """The storage of uploads cannot be used."""


class KeyReused(CeleriacError):
    """The idempotency key was used with other arguments: send a key of its own with each call."""


class TaskError(CeleriacError):
    """Something about one task."""

    def __init__(self, message: str | None = None, task_id: str | None = None) -> None:
        super().__init__(message)
        self.task_id = task_id


class TaskNotFound(TaskError, LookupError):
    """There is no record of this task id."""


class TaskExpired(TaskNotFound):
    """The task's record has expired, some time after the task had ended.

    ``expired_at`` is when (UTC).
    """

    def __init__(
        self, message: str | None = None, task_id: str | None = None, *, expired_at: datetime | None = None
    ) -> None:
        super().__init__(message, task_id)
        self.expired_at = expired_at


class ResultTimeout(TaskError, celery_exceptions.TimeoutError, TimeoutError):  # type: ignore[misc]
    """The task was not ready in time; it goes on."""


class StillRunning(TaskError):
    """Tasks that a test waited for did not end in time."""


class TaskFailed(TaskError):
    """The task raised an exception.

    ``exc_type`` and ``exc_message`` are the names that the record keeps; ``traceback`` is text.
    """

    def __init__(
        self,
        message: str | None = None,
        task_id: str | None = None,
        *,
        exc_type: str = "",
        exc_message: str = "",
        traceback: str | None = None,
    ) -> None:
        super().__init__(message, task_id)
        self.exc_type = exc_type
        self.exc_message = exc_message
        self.traceback = traceback


class TaskRevoked(TaskError, celery_exceptions.TaskRevokedError):  # type: ignore[misc]
    """The task was cancelled before it finished."""


def again(error: BrokerUnavailable) -> BrokerUnavailable:
    """The same error for one more who waits: a traceback belongs to one exception."""
    copy = BrokerUnavailable(str(error))
    copy.permanent, copy.unconfirmed, copy.why = error.permanent, error.unconfirmed, error.why
    copy.__cause__ = error.__cause__
    return copy
