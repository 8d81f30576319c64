"""The source for transports that have none of their own: over kombu's memory and filesystem channels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu.transport import memory

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

    assert [each.envelope for each in taken] == [b"{ no JSON", b"[1]", b""]
    source.finish(taken)
    source.close()
