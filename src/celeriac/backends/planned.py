"""What a result backend does while a plan is made: nothing, but it says what it would have done."""

from __future__ import annotations

from functools import partial
from typing import Any

from celery import states
from celery.backends.base import Backend
from celery.exceptions import NotRegistered
from celery.result import GroupResult

from celeriac.compat import calls_inline, is_lazy_header
from celeriac.planning import Errback, Part, Plan, active_plan
from celeriac.protocol.codec import dumps
from celeriac.stores.chords import ChordPart

__all__ = ["PlannedBackend"]


class PlannedBackend(Backend):  # type: ignore[misc]
    """Comes before the backend that does the work; see :mod:`celeriac.planning`.

    A task may have to do with another app, whose results are kept elsewhere: that backend works as ever, in a thread.
    """

    def store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **options: Any,
    ) -> Any:
        """Celery's; in a plan, the transition that it means."""
        plan = active_plan()
        store = partial(
            super().store_result, task_id, result, state, traceback=traceback, request=request, **options
        )
        if plan is None:
            return store()
        if plan.app is not self.app:
            plan.foreign.append(store)
            return result
        plan.transitions.append(
            self._step(task_id, self.encode_result(result, state), state, traceback, request)
        )
        return result

    def get_state(self, task_id: str) -> str:
        """Celery's; in a plan, the state that was asked for before."""
        plan = active_plan()
        if plan is None or plan.states is None:
            return str(super().get_state(task_id))
        return plan.states.get(task_id, states.PENDING)

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """Celery's; in a plan, it waits for the store."""
        if (plan := active_plan()) is None:
            super().set_chord_size(group_id, chord_size)
        elif plan.app is not self.app:
            plan.foreign.append(partial(super().set_chord_size, group_id, chord_size))
        else:
            plan.chord_steps.append(("set_chord_size", (group_id, chord_size)))

    def apply_chord(self, header_result_args: Any, body: Any, **options: Any) -> None:
        """Celery's; in a plan, a header with groups in it is kept, so that its results get its shape."""
        if (plan := active_plan()) is None:
            super().apply_chord(header_result_args, body, **options)
        elif plan.app is not self.app:
            plan.foreign.append(partial(super().apply_chord, header_result_args, body, **options))
        elif not is_lazy_header(header_result_args[1]):
            header = self.app.GroupResult(*header_result_args)
            if any(isinstance(result, GroupResult) for result in header.results):
                plan.chord_steps.append(("save_chord_header", (header.id, dumps(header.as_tuple()))))

    def add_to_chord(self, chord_id: str, result: Any) -> None:
        """Celery's; in a plan, it waits for the store."""
        if (plan := active_plan()) is None:
            super().add_to_chord(chord_id, result)
        elif plan.app is not self.app:
            plan.foreign.append(partial(super().add_to_chord, chord_id, result))
        else:
            plan.chord_steps.append(("extend_chord", (chord_id, 1, result.id)))

    def on_chord_part_return(self, request: Any, state: str, result: Any, **options: Any) -> None:
        """Celery's; in a plan, the part is to be counted."""
        if (plan := active_plan()) is None:
            super().on_chord_part_return(request, state, result, **options)
        elif request.group and request.id:
            value = dumps(self.encode_result(result, state))
            part = ChordPart(request.group, request.id, request.group_index, state, value)
            plan.parts.append(Part(part, request.chord))

    def _call_task_errbacks(self, request: Any, exc: Any, traceback: Any) -> None:
        # Backend._call_task_errbacks calls new-style errbacks then and there; in a plan, they wait, too.
        plan = active_plan()
        if plan is None:
            super()._call_task_errbacks(request, exc, traceback)
            return
        given = request.errbacks
        arguments = (request, exc, traceback)
        request.errbacks = [each for each in given if not self._planned_inline(plan, each, arguments)]
        try:
            super()._call_task_errbacks(request, exc, traceback)
        finally:
            request.errbacks = given

    def _planned_inline(self, plan: Plan, errback: Any, arguments: tuple[Any, ...]) -> bool:
        signature = self.app.signature(errback)
        if not signature._app:
            signature._app = self.app
        try:
            inline = calls_inline(self, signature)
        except NotRegistered:
            return False
        if inline:
            plan.errbacks.append(Errback(signature, arguments))
        return inline
