"""An app in memory, and the log of what its dependencies do, empty at first."""

from uuid import uuid4

import pytest
from tests.unit.dependencies.sessions import log

from celeriac import Celery


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    log.clear()


@pytest.fixture
def celery() -> Celery:
    url = f"memory://{uuid4()}"
    app = Celery("dependencies", broker=url, backend=url, set_as_current=False)
    app.conf.celeriac_shutdown_grace = 0.3
    return app
