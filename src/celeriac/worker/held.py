"""The executions that a worker holds, from their delivery to their settlement."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from celeriac.worker.execution import Execution

__all__ = ["Held"]


class Held:
    """Executions by delivery tag. A cancellation looks here, and so does remote control, from its thread."""

    def __init__(self) -> None:
        self._by_tag: dict[str, Execution] = {}

    def __iter__(self) -> Iterator[Execution]:
        return iter(list(self._by_tag.values()))

    def add(self, execution: Execution) -> None:
        """From here on, a cancellation finds it."""
        self._by_tag[execution.delivery.tag] = execution

    def get(self, tag: str) -> Execution | None:
        """The execution of a delivery."""
        return self._by_tag.get(tag)

    def discard(self, tag: str) -> None:
        """The delivery is settled, or somebody else's."""
        self._by_tag.pop(tag, None)

    def halt(
        self,
        task_ids: Collection[str],
        reason: BaseException,
        *,
        only: Callable[[Execution], bool] = lambda _execution: True,
    ) -> None:
        """Stop these tasks, or keep them from starting; ``only`` picks among them."""
        for execution in self:
            if execution.id in task_ids and only(execution):
                execution.halt(reason)
