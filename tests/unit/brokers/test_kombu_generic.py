"""The source for transports that have none of their own: over kombu's memory and filesystem channels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu.transport import memory

from celeriac.brokers.base import PartlyPublished
from celeriac.brokers.kombu_names import unwrapped
from celeriac.brokers.kombu_sources.base import Outgoing
from celeriac.brokers.kombu_sources.generic import GenericSource
from celeriac.protocol.envelope import decode
from celeriac.testing.contract.messages import message


@pytest.fixture
def source() -> Iterator[GenericSource]:
    source = GenericSource("memory://")
    source.open()
    yield source
    source.close()
    memory.Channel.queues.clear()


def names(source: GenericSource, queues: list[str], limit: int = 10) -> list[str]:
    taken = source.take(queues, limit, 0.0)
    source.finish(taken)
    return [decode(bytes(each.envelope)).headers["id"] for each in taken]  # type: ignore[arg-type]


def test_what_is_given_back_comes_again(source: GenericSource) -> None:
    source.put([Outgoing("q", message(str(n))) for n in range(3)])
    taken = source.take(["q"], 2, 0.0)
    assert source.size("q") == 1

    source.give_back(taken)

    assert sorted(names(source, ["q"])) == ["0", "1", "2"]
    assert source.take(["q"], 1, 0.0) == []


def test_what_has_not_ended_is_for_others_after_a_close(source: GenericSource) -> None:
    source.put([Outgoing("q", message("1"))])
    source.take(["q"], 1, 0.0)

    source.close()
    source.open()

    assert names(source, ["q"]) == ["1"]


def test_takes_in_turn_and_purges(source: GenericSource) -> None:
    source.put([Outgoing("a", message(f"a{n}")) for n in range(5)] + [Outgoing("b", message("b"))])
    assert sorted(names(source, ["a", "b"], 4)) == ["a0", "a1", "a2", "b"]
    assert source.purge("a") == 2
    assert source.size("a") == 0


def test_what_kombu_cannot_parse_is_not_lost(tmp_path: Path) -> None:
    options = {"data_folder_in": str(tmp_path), "data_folder_out": str(tmp_path)}
    source = GenericSource("filesystem://", options=options)
    source.open()
    for n, text in enumerate(("{ no JSON", "[1]", "")):
        (tmp_path / f"{n}_x.q.msg").write_text(text)

    taken = source.take(["q"], 10, 0.0)

    texts = [b"{ no JSON", b"[1]", b""]
    assert [each.envelope for each in taken] == texts
    source.finish(taken[:1])
    source.give_back(taken[1:])
    again = source.take(["q"], 10, 0.0)
    assert {unwrapped(each.envelope) for each in again} == set(texts[1:])
    source.finish(again)
    assert source.take(["q"], 10, 0.0) == []
    source.close()


class Unsteady(memory.Channel):
    """A channel whose server is gone for one queue."""

    def _get(self, queue: str) -> object:
        return super()._get(self._steady(queue))

    def _put(self, queue: str, message: object, **options: object) -> None:
        super()._put(self._steady(queue), message, **options)

    def _steady(self, queue: str) -> str:
        if queue == "gone":
            raise ConnectionResetError("it is gone")
        return queue


@pytest.fixture
def unsteady(monkeypatch: pytest.MonkeyPatch, source: GenericSource) -> GenericSource:
    monkeypatch.setattr(memory.Transport, "Channel", Unsteady)
    source.close()
    source.open()
    return source


def test_what_was_taken_before_the_server_was_gone_is_not_lost(unsteady: GenericSource) -> None:
    unsteady.put([Outgoing("q", message(str(n))) for n in range(2)])
    got: list[str] = []
    for _ in range(2):  # whichever queue is first
        with contextlib.suppress(ConnectionResetError):
            got += names(unsteady, ["q", "gone"])
    assert "0" in got
    assert unsteady.size("q") == 2 - len(got)


def test_what_cannot_be_given_back_now_is_on_the_next_connection(unsteady: GenericSource) -> None:
    unsteady.put([Outgoing("q", message(str(n))) for n in range(3)])
    taken = unsteady.take(["q"], 3, 0.0)
    unsteady.finish(taken[:1])
    for each in taken:
        each.queue = "gone"

    with pytest.raises(ConnectionResetError):
        unsteady.give_back(taken)
    with pytest.raises(ConnectionResetError):
        unsteady.close()
    for each in taken:
        each.queue = "q"
    unsteady.open()

    assert sorted(names(unsteady, ["q"])) == ["1", "2"]


def test_says_which_were_put_before_the_server_was_gone(unsteady: GenericSource) -> None:
    with pytest.raises(PartlyPublished, match="it is gone") as caught:
        unsteady.put([Outgoing(queue, message("1")) for queue in ("q", "gone", "q")])
    assert caught.value.published == {0}
    assert unsteady.size("q") == 1
