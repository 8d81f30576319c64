"""Replaying dead letters together with their records, and the commands for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from click.testing import CliRunner
from tests.services import Proxy, RedisServer

from celeriac import Celery
from celeriac.brokers.base import DeadLetter, Settlement
from celeriac.brokers.redis_keys import script
from celeriac.cli import main
from celeriac.errors import BrokerUnavailable, PublishTimeout
from celeriac.protocol.settlement import Action
from celeriac.stores.records import Transition

REPLAY = script("replay")
RESULT = '{"exc_type": "WorkerLostError", "exc_message": ["x"]}'


async def bury(celery: Celery) -> str:
    handle = await celery.enqueue("shop.bill", ("ann",))
    (delivery,) = (await celery.broker.receive(["celery"], 1)).deliveries
    await celery.store.transition([Transition(task_id=handle.id, state="FAILURE", at=1.0, result=RESULT)])
    await celery.broker.settle([Settlement(delivery.tag, Action.DEAD_LETTER, reason="too often")])
    return handle.id


async def test_a_replay_that_the_broker_does_not_take_leaves_the_record_at_its_end(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    celery = Celery("shop", broker=redis_server.url, set_as_current=False)
    async with celery:
        task_id = await bury(celery)
        (letter,) = await celery.dead_letters()

        async def refuse(_: object) -> int:
            raise BrokerUnavailable

        with monkeypatch.context() as patch:
            patch.setattr(celery.broker, "replay", refuse)
            with pytest.raises(BrokerUnavailable):
                await celery.replay_dead_letters([letter.id])
        record = await celery.handle(task_id).record()
        assert record.state == "FAILURE"
        assert record.error == "WorkerLostError - x"
        assert await celery.replay_dead_letters([letter.id]) == 1
        assert await celery.handle(task_id).state() == "PENDING"


@pytest.fixture
async def proxy(redis_server: RedisServer) -> AsyncIterator[Proxy]:
    async with Proxy(redis_server.host, redis_server.port) as proxy:
        yield proxy


@pytest.mark.parametrize("arrives", [True, False], ids=["arrives", "is lost"])
async def test_a_replay_of_which_the_broker_says_nothing_leaves_the_record_started_over(
    redis_server: RedisServer, proxy: Proxy, arrives: bool
) -> None:
    """A record that said FAILURE would have the next delivery taken for one whose task has ended."""
    redis_server.command("SCRIPT", "LOAD", REPLAY.text)
    near = Celery("shop", broker=redis_server.url, set_as_current=False)
    far = Celery("shop", broker=f"redis://{proxy.host}:{proxy.port}/0", set_as_current=False)
    async with near, far:
        task_id = await bury(near)
        (letter,) = await far.dead_letters()
        proxy.hold(REPLAY.sha.encode())
        replaying = asyncio.ensure_future(far.replay_dead_letters([letter.id]))
        async with asyncio.timeout(10):
            await proxy.holds.wait()
            if arrives:
                proxy.blackhole(requests=False)
                proxy.let_go()
                while not await near.queue_size("celery"):
                    await asyncio.sleep(0.01)
            proxy.cut()
            with pytest.raises(
                PublishTimeout, match=r"did not confirm: Redis at .* may or may not have been"
            ):
                await replaying
        await proxy.heal()
        proxy.let_go()
        assert await near.handle(task_id).state() == "PENDING"
        assert await far.replay_dead_letters([letter.id]) == (0 if arrives else 1)
        assert await near.queue_size("celery") == 1


async def test_one_without_a_record_is_replayed_too() -> None:
    celery = Celery("shop", broker="memory://dead", backend="disabled://", set_as_current=False)
    async with celery:
        await bury(celery)
        (letter,) = await celery.dead_letters()
        assert await celery.replay_dead_letters([letter.id, "no such letter"]) == 1
        assert await celery.dead_letters() == []


async def test_many_ids_are_read_once_and_not_for_each_letter() -> None:
    class Ids(list[str]):
        reads = 0

        def __iter__(self) -> Iterator[str]:
            self.reads += 1
            return super().__iter__()

    celery = Celery("shop", broker=f"memory://{uuid4()}", backend="disabled://", set_as_current=False)
    async with celery:
        for _ in range(3):
            await bury(celery)
        ids = Ids(letter.id for letter in await celery.dead_letters())
        assert await celery.replay_dead_letters(ids) == 3
    assert ids.reads == 1


APP = """
from celeriac import Celery
celery = Celery("shop", broker="sqlite:///{path}", set_as_current=False)
"""


@pytest.fixture
async def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An importable app with two dead letters; their tasks' ids."""
    path = tmp_path / "celery.db"
    (tmp_path / "dead_letter_shop.py").write_text(APP.format(path=path))
    monkeypatch.syspath_prepend(str(tmp_path))
    celery = Celery("shop", broker=f"sqlite:///{path}", set_as_current=False)
    async with celery:
        return [await bury(celery) for _ in range(2)]


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["dead-letters", *words])
    return result.exit_code, result.output


def test_the_commands(shop: list[str]) -> None:
    app = ("-A", "dead_letter_shop.celery")
    code, output = run("list", *app, "--json")
    assert code == 0
    letters = [json.loads(line) for line in output.splitlines()]
    assert sorted(letter["task_id"] for letter in letters) == sorted(shop)
    assert letters[0]["reason"] == "too often"
    code, output = run("list", *app, "--limit", "1")
    assert output.count("too often") == 1
    assert run("replay", *app, letters[0]["id"]) == (0, "1 replayed.\n")
    assert run("replay", *app, letters[0]["id"])[0] == 1
    assert run("replay", *app, "--all") == (0, "1 replayed.\n")
    assert "There are no dead letters." in run("list", *app)[1]


def test_what_a_stranger_has_written_does_not_speak_to_the_terminal(
    shop: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    letter = DeadLetter("7", "celery", "t", "half \ud800", "\x1b[2Jcleared\n8  forged", 1, 0.0, b"")

    async def found(*_: object) -> list[DeadLetter]:
        return [letter]

    monkeypatch.setattr(Celery, "dead_letters", found)
    app = ("-A", "dead_letter_shop.celery")
    code, output = run("list", *app)
    assert (code, output.count("\n")) == (0, 1)
    assert output.endswith(r"half \ud800  t  1  \x1b[2Jcleared\n8  forged" + "\n")
    assert json.loads(run("list", *app, "--json")[1])["reason"] == letter.reason


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("replay", "-A", "dead_letter_shop"), "Name dead letters by their ids, or give --all"),
        (("replay", "-A", "dead_letter_shop", "--queue", "q", "1"), "--queue goes with --all"),
        (("list", "-A", "no_such_module"), "There is no Celery app at 'no_such_module'"),
        (("list", "-A", "json"), "There is no Celery app at 'json'"),
    ],
)
def test_what_is_wrong_is_said(shop: list[str], words: tuple[str, ...], complaint: str) -> None:
    code, output = run(*words)
    assert code != 0
    assert complaint in output
    assert "Traceback" not in output
