from __future__ import annotations

import os
import uuid

from celeriac.calls import new_id


def _random_part() -> str:
    return new_id()[-17:]


def test_ids_are_uuids_of_version_7_and_each_is_another() -> None:
    ids = [new_id() for _ in range(1000)]
    assert {uuid.UUID(each).version for each in ids} == {7}
    assert len(set(ids)) == 1000
    assert new_id(1.0) < new_id(2.0)


def test_a_forked_child_does_not_make_the_ids_of_its_parent() -> None:
    _random_part()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, _random_part().encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100).decode() not in {_random_part() for _ in range(200)}
