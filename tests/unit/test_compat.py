"""Pins every undocumented name of Celery's that ``celeriac.compat`` touches: an upgrade fails here first."""

from __future__ import annotations

import asyncio
from typing import Any

import celery
import pytest
from celery import _state, chain, group
from celery.app.task import Context
from celery.app.task import Task as CeleryTask
from celery.backends import redis
from celery.backends.base import Backend
from celery.canvas import Signature
from celery.utils.threads import _LocalStack

from celeriac import Celery, compat


def test_the_task_stack_is_keyed_by_the_running_execution() -> None:
    assert isinstance(_state._task_stack, _LocalStack)
    stack: Any = _LocalStack()
    compat.key_stack_by_context(stack)

    async def one(name: str) -> Any:
        compat.enter_execution(object())
        stack.push(name)
        await asyncio.sleep(0)
        return stack.top

    async def both() -> list[Any]:
        return await asyncio.gather(one("a"), one("b"))

    assert asyncio.run(both()) == ["a", "b"]
    assert stack.top is None


def test_a_task_request_is_celerys_context_with_the_same_custom_headers() -> None:
    headers = {"id": "1", "task": "t", "lang": "py", "mine": 1, "retries": 0}
    assert compat.TaskRequest({"message_headers": headers}).headers == Context(headers).headers == {"mine": 1}
    assert compat.TaskRequest({"message_headers": {"id": "1"}}).headers is None


def test_signatures_merge_as_apply_async_does() -> None:
    app = celery.Celery("pin", set_as_current=False)
    signature = Signature("task", args=(1,), kwargs={"a": 1}, options={"queue": "q"}, app=app)
    assert compat.merge_signature(signature, (0,), {"b": 2}, {"priority": 3}) == (
        "task",
        (0, 1),
        {"a": 1, "b": 2},
        {"queue": "q", "priority": 3},
    )
    assert compat.is_plain_signature(signature)
    assert not compat.is_plain_signature(group([signature]))
    assert not compat.is_plain_signature(chain(signature, signature))


def test_an_app_is_found_as_celery_finds_it() -> None:
    assert compat.find_app("tests.acceptance.apps.ledger") is compat.find_app(
        "tests.acceptance.apps.ledger:celery"
    )
    with pytest.raises(ImportError):
        compat.find_app("no.such.module")


def test_defaults_lose_against_what_the_user_sets() -> None:
    app = Celery("pin", broker="memory://pin", set_as_current=False)

    class Config:
        task_acks_late = False

    app.config_from_object(Config)
    assert app.conf.task_acks_late is False
    assert app.conf.task_track_started is True
    assert app.conf.celeriac_delivery_limit == 5


def test_the_backend_still_has_what_failures_are_passed_on_by() -> None:
    for name in ("on_chord_part_return", "_fail_chain", "_call_task_errbacks"):
        assert callable(getattr(Backend, name))


def test_custom_handlers_are_recognised_and_inherited_ones_are_not() -> None:
    class Mine(CeleryTask):  # type: ignore[misc]
        def on_success(self, *args: Any) -> None: ...

    assert compat.has_custom(Mine(), "on_success")
    assert not compat.has_custom(Mine(), "on_failure")


def test_the_scripts_by_which_chords_are_counted_take_and_give_what_they_did() -> None:
    # celeriac.stores.redis_chords runs them; what they do is tested on a server.
    assert "return {readycount, totaldiff, size, claimed}" in redis.CHORD_PART_RETURN_LUA
    assert "return {-1, 0, 0, 0}" in redis.CHORD_PART_RETURN_LUA
    for script, keys, arguments in (
        (redis.CHORD_PART_RETURN_LUA, 6, 8),
        (redis.CHORD_CLEANUP_LUA, 5, 2),
        (redis.CHORD_CLAIM_EXTEND_LUA, 2, 2),
    ):
        assert f"KEYS[{keys}]" in script
        assert f"KEYS[{keys + 1}]" not in script
        assert f"ARGV[{arguments}]" in script
        assert f"ARGV[{arguments + 1}]" not in script


def test_proxies_of_tasks_still_look_their_object_up() -> None:
    made = []

    def make() -> object:
        made.append(object())
        return made[-1]

    task = compat.deferred(make)
    assert made == []
    assert compat.evaluated(task) is compat.evaluated(task) is made[0]
    assert compat.evaluated("itself") == "itself"
    proxy = compat.TaskProxy(lambda: 5, make)
    assert isinstance(proxy, int)
    assert proxy.__name__ == "make"
