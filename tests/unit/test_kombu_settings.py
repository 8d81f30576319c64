"""An app on one of kombu's transports: what it says at its start, and what stock code over it gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from celeriac import Celery
from celeriac.errors import ConfigurationError


@pytest.fixture
def app(tmp_path: Path) -> Celery:
    app = Celery(
        "kombu-settings",
        broker=f"sqla+sqlite:///{tmp_path}/broker.db",
        backend=f"sqlite:///{tmp_path}/celery.db",
        set_as_current=False,
    )
    app.conf.broker_transport_options = {"polling_interval": 0.1, "visibility_timeout": 7, "echo": False}
    return app


async def test_what_the_transport_cannot_do_is_said_once(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        async with app:
            assert app.broker.lease == 7
    said = [record.getMessage() for record in caplog.records if "transport" in record.getMessage()]
    assert len(said) == 1
    assert "cannot broadcast" in said[0]
    assert "kept in sqlite://" in said[0]


def test_kombu_does_not_get_options_that_it_does_not_bear(app: Celery) -> None:
    with app.connection_for_write() as connection:
        assert connection.transport_options == {"echo": False}


def test_commands_say_why_they_reach_nobody(app: Celery) -> None:
    with pytest.raises(ConfigurationError, match="cannot broadcast, so inspect and control reach no worker"):
        app.control.ping()
    with pytest.raises(ConfigurationError, match="cancelling works"):
        app.control.inspect().active()
    app.control.revoke("an id without a task")
