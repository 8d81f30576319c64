"""What Celery does not document and tests of applications stand on; each name with its upstream symbol.

``tests/unit/testing/test_compat.py`` pins every one of them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from celery.app.utils import Settings

from celeriac.timing import Now

__all__ = ["elsewhere"]

#: Attributes of the app, Celery's and ours, that follow from the broker, the result backend and other settings.
_CACHED = ("amqp", "propagation", "settings", "uploads")


class _Overridden(Settings):  # type: ignore[misc]
    """Another app's settings under some of one's own, which win against the environment as well.

    ``celery.app.utils.Settings`` reads ``CELERY_BROKER_URL`` and its kin from the environment first.
    """

    broker_url = property(lambda self: self.changes["broker_url"])
    broker_read_url = property(lambda self: self.changes["broker_url"])
    broker_write_url = property(lambda self: self.changes["broker_url"])
    result_backend = property(lambda self: self.changes["result_backend"])


@contextmanager
def elsewhere(app: Any, settings: Mapping[str, Any], connections: Any, now: Now) -> Iterator[None]:
    """Have an app use other servers, and another clock, as long as the context lasts.

    ``settings`` win against all others. What is set on ``app.conf`` meanwhile is gone afterwards. Reads the app's
    configuration and imports its modules: not for the event loop.
    """
    conf = app.conf
    conf.finalize()
    app.finalize(auto=True)
    ours = _Overridden(
        dict(settings),
        conf.maps,
        conf._keys,
        conf.prefix,
        deprecated_settings=conf.deprecated_settings,
    )
    known = vars(app)
    former = {name: known.pop(name) for name in _CACHED if name in known}
    # ``_backend_cache`` and ``_local.backend`` are the result backend, ``_pool`` is the connections of ``.delay()``.
    places = {
        name: getattr(app, name) for name in ("_conf", "_pool", "_backend_cache", "_local", "_connections")
    }
    app._conf, app._pool, app._backend_cache = ours, None, None
    app._local = threading.local()
    app._connections = connections
    # ``Celery.now`` is what countdowns of ``.delay()`` and schedules count from.
    known["now"] = lambda: datetime.fromtimestamp(now(), UTC).astimezone(app.timezone)
    try:
        yield
    finally:
        if app._pool is not None:
            app._pool.force_close_all()
        for name in (*_CACHED, "now"):
            known.pop(name, None)
        known.update(former)
        for name, value in places.items():
            setattr(app, name, value)
