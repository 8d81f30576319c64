"""What was enqueued, and the sentences about it."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any
from unittest.mock import ANY

import pytest
from pydantic import BaseModel

from celeriac import Celery, TaskContext
from celeriac.testing import in_memory


class Address(BaseModel):
    street: str
    since: date


@pytest.fixture
def send(celery: Celery) -> Any:
    @celery.task(name="mail.send", bind=True)
    async def send(
        self: Any, recipient: str, to: Address | None = None, *, copies: int = 1, ctx: TaskContext
    ) -> None:
        """Send something."""

    return send


async def test_a_call_is_found_however_its_arguments_were_given(celery: Celery, send: Any) -> None:
    home = Address(street="Main", since=date(2020, 1, 1))
    async with in_memory(celery, mode="held") as tasks:
        handle = await send.enqueue("ada", to=home)
        call = tasks.assert_enqueued(send, recipient="ada", to=home, copies=1)
        assert call.id == handle.id
        assert call.kwargs == {"to": {"street": "Main", "since": "2020-01-01"}}
        tasks.assert_enqueued(send, "ada", home)
        tasks.assert_enqueued(send, ANY, {"street": ANY, "since": "2020-01-01"})
        tasks.assert_enqueued(send)
        tasks.assert_enqueued("mail.send")
        tasks.assert_enqueued("mail.send", "ada", to=ANY)
        tasks.assert_not_enqueued(send, "ada")
        tasks.assert_not_enqueued(send, "alan", home)
        tasks.assert_not_enqueued("mail.receive")


async def test_options_are_compared_when_they_are_given(celery: Celery, send: Any) -> None:
    async with in_memory(celery, mode="held") as tasks:
        options = {"queue": "mail", "countdown": 60, "priority": 3, "owner": "u1", "headers": {"x": "y"}}
        await send.using(**options, expires=timedelta(hours=1)).enqueue("ada")
        tasks.assert_enqueued(send.using(**options, expires=3600), "ada")
        tasks.assert_enqueued(send.using(eta=tasks.clock.time + timedelta(minutes=1)), "ada")
        for wrong in (
            {"queue": "celery"},
            {"countdown": 61},
            {"expires": 60},
            {"priority": 4},
            {"owner": "u2"},
            {"headers": {"x": "z"}},
        ):
            tasks.assert_not_enqueued(send.using(**wrong), "ada")
        with pytest.raises(TypeError, match="cannot tell what a call had for deadline"):
            tasks.assert_enqueued(send.using(deadline=1))


async def test_the_message_shows_what_was_enqueued(celery: Celery, send: Any) -> None:
    async with in_memory(celery, mode="held") as tasks:
        with pytest.raises(AssertionError) as caught:
            tasks.assert_enqueued(send, "ada")
        assert str(caught.value) == "mail.send('ada') was not enqueued. Nothing was enqueued."
        await send.using(countdown=60, owner="u1").enqueue("alan", copies=2)
        with pytest.raises(AssertionError) as caught:
            tasks.assert_enqueued(send.using(queue="mail"), "ada")
        assert str(caught.value) == (
            "mail.send('ada') with queue='mail' was not enqueued. These were enqueued:\n"
            "  mail.send('alan', copies=2)   queue 'celery', due in 60 s, owner 'u1'"
        )
        with pytest.raises(AssertionError, match=r"was enqueued\. These were"):
            tasks.assert_not_enqueued(send)


async def test_retries_are_no_calls_of_their_own_and_children_are(celery: Celery) -> None:
    @celery.task
    async def child() -> None: ...

    @celery.task(bind=True, max_retries=1, default_retry_delay=0)
    async def parent(self: Any) -> None:
        if not self.request.retries:
            raise self.retry()
        await child.enqueue()

    async with in_memory(celery) as tasks:
        handle = await parent.enqueue()
        await tasks.idle()
        assert [call.name for call in tasks.enqueued] == [parent.name, child.name]
        assert tasks.enqueued[1].parent_id == handle.id


async def test_a_stub_is_a_task_like_any_other(celery: Celery) -> None:
    @celery.stub(name="elsewhere.render")
    async def render(page: int, *, draft: bool = False) -> str: ...

    async with in_memory(celery, mode="held") as tasks:
        await render.enqueue(1)
        tasks.assert_enqueued(render, page=1, draft=False)
        tasks.assert_not_enqueued(render.using(queue="other"))
