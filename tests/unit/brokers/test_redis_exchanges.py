"""What is for all who listen, and what is for queues."""

from __future__ import annotations

import time
from dataclasses import replace

from celeriac.brokers.redis_exchanges import to_listeners
from celeriac.testing.contract.messages import publication


def test_a_large_batch_is_told_apart_at_once() -> None:
    told = replace(publication("told", "", exchange="all"), exchange_type="fanout")
    batch = [
        replace(each, task_id=str(number)) for number in range(5000) for each in (told, publication("x"))
    ]
    began = time.perf_counter()
    queued, heard = to_listeners(batch)
    assert time.perf_counter() - began < 1
    assert [each.queue for each in queued] == ["contract"] * 5000
    assert [each.task_id for each in heard] == [str(number) for number in range(5000)]
