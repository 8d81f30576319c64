"""kombu's SQLAlchemy transport through tables of kombu's own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import sqlalchemy as sa

from celeriac.brokers.kombu_sources.base import Outgoing
from celeriac.brokers.kombu_sources.sqla import SQLAlchemySource
from celeriac.testing.contract.messages import message


def test_many_may_be_the_first(tmp_path: Path) -> None:
    for n in range(5):
        url = f"sqla+sqlite:///{tmp_path}/broker{n}.db"
        barrier = Barrier(4)

        def put(barrier: Barrier = barrier, url: str = url) -> None:
            source = SQLAlchemySource(url)
            barrier.wait(10)
            source.open()
            source.put([Outgoing("q", message("1")), Outgoing("r", message("2"))])
            source.close()

        with ThreadPoolExecutor(4) as pool:
            for each in [pool.submit(put) for _ in range(4)]:
                each.result(timeout=30)

        source = SQLAlchemySource(url)
        source.open()
        assert source.size("q") == source.size("r") == 4
        source.close()


def test_what_is_taken_is_nothing_to_stock_workers_and_then_gone(tmp_path: Path) -> None:
    url = f"sqla+sqlite:///{tmp_path}/broker.db"
    source = SQLAlchemySource(url)
    source.open()
    source.put([Outgoing("q", message(str(n))) for n in range(3)])
    taken = source.take(["q"], 2, 0.0)
    engine = sa.create_engine(url.removeprefix("sqla+"))
    with engine.connect() as connection:
        seen = connection.execute(sa.text("SELECT count(*) FROM kombu_message WHERE visible != 0")).scalar()
        assert seen == 1
        assert source.size("q") == 1
        source.finish(taken)
        assert connection.execute(sa.text("SELECT count(*) FROM kombu_message")).scalar() == 1
    engine.dispose()
    source.close()
