"""Messages in the database, where the broker contract does not look."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import Connection, Engine

from celeriac.sql import engine as sql_engine
from celeriac.sql import messages
from celeriac.sql.messages import Draft, Ending
from celeriac.sql.schema import create_tables
from celeriac.sql.tables import DEAD, READY

NOW = 1_800_000_000.0


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    """A connection in the middle of a transaction."""
    engine: Engine = sql_engine.create_engine(f"sqlite:///{tmp_path}/celery.db")
    create_tables(engine)
    with engine.connect() as connection, connection.begin():
        yield connection
    engine.dispose()


def take(connection: Connection, *queues: str, limit: int = 10_000, now: float = NOW) -> list[str]:
    return [taken.envelope.decode() for taken in messages.take(connection, queues or ["q"], limit, 30.0, now)]


@pytest.mark.parametrize("count", [1, 2, 127, 128, 129, 700])
def test_inserts_any_number_in_order(connection: Connection, count: int) -> None:
    messages.insert(connection, (Draft("q", f"é{n}") for n in range(count)))

    assert take(connection) == [f"é{n}" for n in range(count)]


def test_envelopes_are_any_text(connection: Connection) -> None:
    envelopes = ["", "ü", "\x00", "a\x00b", '{"a": "\\"\\\\"}', "\U0001f600", "\x1e\x1f\n"]
    messages.insert(connection, [Draft("q", envelope) for envelope in envelopes])

    assert take(connection) == envelopes


def test_what_falls_due_comes_in_bounded_steps(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "_PROMOTE_LIMIT", 3)
    messages.insert(connection, [Draft("q", str(n), due=NOW - 10 + n) for n in range(8)])

    assert [take(connection) for _ in range(4)] == [["0", "1", "2"], ["3", "4", "5"], ["6", "7"], []]


def test_a_queue_named_twice_has_no_advantage(connection: Connection) -> None:
    messages.insert(connection, [Draft(queue, f"{queue}{n}") for queue in "ab" for n in range(4)])

    assert take(connection, "a", "a", "b", limit=4) == ["a0", "b0", "a1", "b1"]


@pytest.mark.parametrize(
    "tag",
    [
        "",
        ".",
        "1",
        "1.",
        ".1",
        "1.1.1",
        "1.1 ",
        " 1.1",
        "\u0661.\u0661",
        "1.1;",
        "-1.1",
        "01.1",
        "1e0.1",
        "9" * 40,
    ],
)
def test_only_the_very_tag_names_a_delivery(connection: Connection, tag: str) -> None:
    messages.insert(connection, [Draft("q", "x")])
    (taken,) = messages.take(connection, ["q"], 1, 30.0, NOW)
    assert taken.tag == "1.1"

    assert messages.renew(connection, [tag], 30.0, NOW) == {tag}
    assert messages.settle(connection, [Ending(tag)]) == {tag}
    assert messages.settle(connection, [Ending(taken.tag)]) == set()


def test_a_lease_that_ran_out_holds_until_somebody_takes_the_message(connection: Connection) -> None:
    messages.insert(connection, [Draft("q", "x")])
    (taken,) = messages.take(connection, ["q"], 1, 30.0, NOW)
    late = NOW + 100
    assert take(connection, "other", now=late) == []
    assert messages.size(connection, "q", late) == 1

    assert messages.renew(connection, [taken.tag], 30.0, late) == set()

    assert take(connection, now=late + 1) == []
    assert messages.next_due(connection) == late + 30


def test_of_two_endings_of_one_delivery_the_first_counts(connection: Connection) -> None:
    messages.insert(connection, [Draft("q", "x")])
    (taken,) = messages.take(connection, ["q"], 1, 30.0, NOW)

    assert messages.settle(connection, [Ending(taken.tag, READY), Ending(taken.tag)]) == set()

    assert messages.size(connection, "q", NOW) == 1


def test_expired_messages_are_dropped_but_not_from_under_a_consumer(connection: Connection) -> None:
    drafts = [Draft("q", name, expires=expires) for name, expires in (("a", NOW), ("b", NOW), ("c", NOW + 1))]
    messages.insert(connection, [*drafts, Draft("q", "d")])
    (taken,) = messages.take(connection, ["q"], 1, 30.0, NOW)

    assert messages.drop_expired(connection, NOW) == 1
    assert messages.drop_expired(connection, NOW) == 0

    assert take(connection) == ["c", "d"]
    assert messages.settle(connection, [Ending(taken.tag, READY)]) == set()
    assert messages.drop_expired(connection, NOW) == 1


def test_purges_in_steps(connection: Connection) -> None:
    messages.insert(connection, [Draft("q", "x") for _ in range(5)])
    messages.insert(connection, [Draft("q", "x", due=NOW + 9) for _ in range(5)])

    assert [messages.purge(connection, "q", NOW, 4) for _ in range(4)] == [4, 4, 2, 0]


def test_purges_what_a_dead_consumer_has_left(connection: Connection) -> None:
    messages.insert(connection, [Draft("q", "x"), Draft("q", "y")])
    messages.take(connection, ["q"], 1, 30.0, NOW)
    messages.take(connection, ["q"], 1, 300.0, NOW)

    assert messages.purge(connection, "q", NOW + 60) == 1


def test_has_ready_and_next_due(connection: Connection) -> None:
    assert not messages.has_ready(connection, ["q"], NOW)
    assert messages.next_due(connection) is None
    messages.insert(connection, [Draft("q", "x", due=NOW + 5)])

    assert not messages.has_ready(connection, ["q"], NOW)
    assert messages.next_due(connection) == NOW + 5
    assert messages.has_ready(connection, ["q"], NOW + 5)
    assert messages.size(connection, "q", NOW + 5) == 1
    messages.insert(connection, [Draft("r", "x")])
    assert not messages.has_ready(connection, ["q"], NOW)
    assert messages.has_ready(connection, ["q", "r"], NOW)


def test_a_dead_letter_keeps_its_times(connection: Connection) -> None:
    messages.insert(connection, [Draft("q", "x", task_id="id", task="name")])
    (taken,) = messages.take(connection, ["q"], 1, 30.0, NOW)
    messages.settle(connection, [Ending(taken.tag, DEAD, NOW + 1, reason="why")])

    assert messages.next_due(connection) is None
    assert messages.dead_letters(connection, "q", 10) == [
        messages.Buried(1, "q", "id", "name", "why", 1, NOW + 1, b"x")
    ]


def test_dead_letters_are_any_bytes(connection: Connection) -> None:
    """What somebody else has written need not be text."""
    messages.insert(connection, [Draft("q", "x"), Draft("q", "ü\x00"), Draft("q", "y")])
    connection.exec_driver_sql("UPDATE celeriac_message SET envelope = x'00fffe' WHERE id = 1")
    for taken in messages.take(connection, ["q"], 3, 30.0, NOW):
        messages.settle(connection, [Ending(taken.tag, DEAD, NOW, reason="why")])

    found = messages.dead_letters(connection, None, 10)
    assert [letter.envelope for letter in found] == [b"y", "ü\x00".encode(), b"\x00\xff\xfe"]


def test_no_statement_reads_a_whole_table(connection: Connection) -> None:
    """A million messages must cost no more than a hundred, so every step is a search in an index."""
    statements = []
    for name, value in vars(messages).items():
        if name.startswith("_") and (getattr(value, "is_select", False) or getattr(value, "is_dml", False)):
            compiled = value.compile(dialect=connection.dialect)
            plan = connection.exec_driver_sql(
                f"EXPLAIN QUERY PLAN {compiled}", tuple("[]" for _ in compiled.positiontup or ())
            )
            statements.append((name, [row[-1] for row in plan]))

    assert len(statements) >= 15
    for name, plan in statements:
        scans = [step for step in plan if step.startswith("SCAN celeriac_message")]
        # The delayed and the leased of all queues, and the dead: in their own small indexes.
        allowed = {"SCAN celeriac_message USING INDEX celeriac_message_dead"}
        if name == "_purge_moving":
            allowed.add("SCAN celeriac_message USING INDEX celeriac_message_due")
        assert set(scans) <= allowed, name
