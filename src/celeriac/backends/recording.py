"""What a synchronous result backend writes into records, wherever they are kept."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

from celery.backends.base import Backend

from celeriac.errors import ConfigurationError
from celeriac.stores.records import Transition

__all__ = ["RecordingBackend"]


class RecordingBackend(Backend):  # type: ignore[misc]
    """What Celery stores becomes a transition of a record, by the rules of :class:`Transition`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.content_type != "application/json":
            raise ConfigurationError(
                f"result_serializer is {self.serializer!r}, but celeriac keeps results as JSON. Remove the setting."
            )

    @abstractmethod
    def record_published(self, transitions: Sequence[Transition]) -> None:
        """Apply transitions, for synchronous code that publishes. Raises StoreUnavailable."""

    @abstractmethod
    def request_cancel(self, task_ids: Sequence[str], *, running: bool = True) -> Collection[str]:
        """Mark tasks as cancelled, those that run only with ``running``. Returns which. Raises StoreUnavailable."""

    @abstractmethod
    def is_cancelled(self, task_id: str) -> bool:
        """Whether the task is marked as cancelled, or revoked. Raises StoreUnavailable."""

    def _text(self, value: Any) -> str:
        encoded = self.encode(value)
        return encoded.decode() if isinstance(encoded, bytes) else str(encoded)

    def _store_result(self, *args: Any, **options: Any) -> None:
        self.record_published([self._step(*args, **options)])

    def _step(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **_options: Any,
    ) -> Transition:
        """The transition that Celery's ``store_result`` means."""
        return Transition(
            task_id=task_id,
            state=state,
            at=time.time(),
            result=self._text(result),
            traceback=None if traceback is None else str(traceback),
            **self._facts(request),
        )

    def _facts(self, request: Any) -> dict[str, Any]:
        """What a worker's request tells of its task, and whom it has called; without one, whom the running task has."""
        children = self.current_task_children(request) or None
        if request is None:
            return {} if children is None else {"children": self._text(children)}
        facts: dict[str, Any] = {
            "name": getattr(request, "task", None),
            "root_id": getattr(request, "root_id", None),
            "parent_id": getattr(request, "parent_id", None),
            "group_id": getattr(request, "group", None),
            "worker": getattr(request, "hostname", None),
            "retries": getattr(request, "retries", None),
            "queue": (getattr(request, "delivery_info", None) or {}).get("routing_key"),
        }
        values = {name: getattr(request, name, None) for name in ("args", "kwargs")}
        values["children"] = children
        return facts | {name: self._text(value) for name, value in values.items() if value is not None}
