"""The reader of the auditor's logs finds what went wrong, so that a table of zeros means something."""

from __future__ import annotations

from pathlib import Path

from tests.acceptance.chaos.audit import Audit, Death


def audit_of(folder: Path, *lines: str) -> Audit:
    """An audit of ``what id attempt pid at`` lines, in one file per process."""
    for line in lines:
        what, task_id, attempt, pid, at = line.split()
        with (folder / f"{pid}.log").open("a") as file:
            file.write(f"{what} {task_id} {attempt} {pid} {at} {at}\n")
    return Audit.of(folder)


def test_an_attempt_that_two_live_workers_started_is_doubled(tmp_path: Path) -> None:
    audit = audit_of(
        tmp_path, "start a 0 1 10", "start a 0 2 11", "start b 0 1 10", "retry b 0 1 11", "start b 1 2 12"
    )
    assert audit.doubled() == ["a"]
    assert audit.repeated() == ["a"]


def test_a_death_in_between_excuses_it_and_another_does_not(tmp_path: Path) -> None:
    audit = audit_of(tmp_path, "start a 0 1 10", "start a 0 2 14")
    assert audit.doubled([Death(12, pid=1)]) == []
    assert audit.recoveries([Death(12, pid=1)]) == [2.0]
    for irrelevant in (
        Death(15, pid=1),
        Death(12, pid=3),
        Death(1, pid=1, until=9),
        Death(13, pid=2, until=13.5),
    ):
        excused = irrelevant.pid == 2  # it was stopped, and went on with what it had
        assert audit.doubled([irrelevant]) == ([] if excused else ["a"]), irrelevant


def test_a_death_long_after_the_end_of_a_task_excuses_no_second_start(tmp_path: Path) -> None:
    audit = audit_of(tmp_path, "start a 0 1 10", "end a 0 1 11", "start a 0 2 90")
    assert audit.doubled([Death(12, pid=1)]) == []  # before it was acknowledged, perhaps
    assert audit.doubled([Death(80, pid=1)]) == ["a"]
    assert audit.doubled([Death(80, until=85)]) == ["a"]


def test_what_follows_a_repeated_attempt_may_be_repeated_too(tmp_path: Path) -> None:
    audit = audit_of(tmp_path, "start a 0 1 10", "start a 0 2 14", "start a 1 2 15", "start a 1 3 16")
    assert audit.doubled([Death(12, pid=1)]) == []
    assert audit.doubled() == ["a"]


def test_an_attempt_that_was_asked_for_while_the_server_was_away_may_come_twice(tmp_path: Path) -> None:
    audit = audit_of(tmp_path, "start a 0 1 10", "retry a 0 1 11", "start a 1 2 20", "start a 1 3 21")
    assert audit.doubled([Death(10.5, until=15)]) == []
    assert audit.doubled([Death(5, until=9)]) == ["a"]
    assert audit.doubled([Death(22, until=25)]) == ["a"]


def test_what_was_delayed_while_the_server_was_away_may_come_twice(tmp_path: Path) -> None:
    twice = ("start {} 0 2 20", "start {} 0 3 21")
    for name, delayed in (("a", 0), ("b", 1)):
        audit = audit_of(tmp_path, f"accepted {name} {delayed} 1 10", *(line.format(name) for line in twice))
    assert audit.doubled([Death(12, until=15)]) == ["a"]
    assert sorted(audit.doubled([Death(5, until=9)])) == ["a", "b"]


def test_a_line_that_was_not_finished_is_not_read(tmp_path: Path) -> None:
    audit_of(tmp_path, "start a 0 1 10")
    with (tmp_path / "1.log").open("a") as file:
        file.write("end a 0 1 1")
    audit = Audit.of(tmp_path)
    assert not audit.ends
    assert audit.unfinished(1) == ["a"]
