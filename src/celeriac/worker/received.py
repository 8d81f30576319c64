"""What receivers of ``task_received`` get: a delivery in the shape of ``celery.worker.request.Request``."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from celery.exceptions import TaskRevokedError

from celeriac.worker.execution import Execution
from celeriac.worker.log import shown_name
from celeriac.worker.mirror import RequestView
from celeriac.worker.refusal import raw_message

__all__ = ["ReceivedRequest"]


class ReceivedRequest(RequestView):
    """The attributes of Celery's request of a message, to be read; what settles the message is the worker's alone."""

    __slots__ = ()

    utc = True
    eventer = None
    connection_errors = ()
    _execution: Execution

    def __init__(self, execution: Execution, app: Any) -> None:
        super().__init__(
            execution, app, lambda _task_id, _signal: execution.halt(TaskRevokedError("terminated"))
        )

    def __repr__(self) -> str:
        return f"{self.name}[{self._execution.id}]"

    humaninfo = __str__ = __repr__

    @property
    def app(self) -> Any:
        return self._app

    @property
    def name(self) -> str:
        return shown_name(self._execution)

    task_name = name

    @property
    def message(self) -> Any:
        return raw_message(self._execution.delivery)

    @property
    def body(self) -> bytes:
        return self._execution.message.body

    @property
    def content_type(self) -> str:
        return self._execution.message.content_type

    @property
    def content_encoding(self) -> str:
        return self._execution.message.content_encoding

    @property
    def request_dict(self) -> dict[str, Any]:
        """What the task's own request will say."""
        return dict(vars(self._execution.request))

    @property
    def root_id(self) -> str:
        return self._execution.message.root_id

    @property
    def parent_id(self) -> str | None:
        return self._execution.message.parent_id

    @property
    def eta(self) -> datetime | None:
        return self._execution.message.eta

    @property
    def expires(self) -> datetime | None:
        return self._execution.message.expires

    @property
    def time_limits(self) -> tuple[float | None, float | None]:
        message = self._execution.message
        return message.time_limit, message.soft_time_limit

    @property
    def correlation_id(self) -> Any:
        return self._execution.message.properties.get("correlation_id")

    @property
    def reply_to(self) -> Any:
        return self._execution.message.properties.get("reply_to")

    @property
    def ignore_result(self) -> bool:
        return self._execution.ignores_result

    @property
    def store_errors(self) -> bool:
        return not self._execution.ignores_result or self._execution.stores_errors

    @property
    def stamped_headers(self) -> list[str]:
        return list(self._execution.message.stamped_headers or ())

    @property
    def chord(self) -> Any:
        return self._execution.message.chord

    @property
    def errbacks(self) -> Any:
        return self._execution.message.errbacks

    @property
    def group(self) -> str | None:
        return self._execution.message.group_id

    @property
    def group_index(self) -> int | None:
        return self._execution.request.group_index  # type: ignore[no-any-return]

    @property
    def groups(self) -> list[Any]:
        return list(self._execution.message.headers.get("groups") or ())

    @property
    def replaced_task_nesting(self) -> int:
        return int(self._execution.message.headers.get("replaced_task_nesting") or 0)

    @property
    def tzlocal(self) -> Any:
        return self._app.conf.timezone
