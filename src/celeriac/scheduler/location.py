"""Where a schedule is kept: in the database of the queues, else in that of the results."""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import URL

from celeriac.errors import ConfigurationError
from celeriac.sql.engine import absolute_url

__all__ = ["database_of", "schedule_database"]


def database_of(url: str) -> URL | None:
    """The database that a broker's or a result backend's URL means, if it is one of celeriac's."""
    plain = url.removeprefix("db+")
    scheme = plain.partition(":")[0].partition("+")[0]
    return absolute_url(plain).set(drivername=scheme) if scheme == "sqlite" else None


def schedule_database(app: Any) -> URL:
    """The database of an app's schedule. Raises ConfigurationError when the app has none."""
    conf = app.conf
    for url in (conf.broker_url, conf.result_backend):
        database = database_of(url) if isinstance(url, str) else None
        if database is not None:
            return database
    raise ConfigurationError(
        "celeriac's scheduler keeps its state in the database of the queue or of the results, but neither "
        f"broker_url ({_scheme(conf.broker_url)}) nor result_backend ({_scheme(conf.result_backend)}) is a sqlite:// "
        "URL. Remove the beat_scheduler setting to use Celery's own."
    )


def _scheme(url: Any) -> str:
    # The rest of it may hold a password.
    return f"{url.partition(':')[0]}://" if isinstance(url, str) and url else "unset"
