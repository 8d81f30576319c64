"""What of Celery's inside tests of applications stand on is still there."""

from __future__ import annotations

import pytest
from celery import Celery as StockCelery
from celery.app.utils import Settings

from celeriac.testing.compat import elsewhere
from celeriac.timing import system_now


def test_an_app_has_the_attributes_that_are_exchanged() -> None:
    app = StockCelery("stock", set_as_current=False)
    conf = app.conf
    conf.finalize()
    for name in ("_conf", "_pool", "_backend_cache", "_local", "amqp", "now"):
        assert hasattr(app, name), name
    assert isinstance(app._conf, Settings)
    for name in ("maps", "changes", "_keys", "prefix", "deprecated_settings"):
        assert hasattr(conf, name), name


def test_the_environment_and_names_with_a_prefix_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    from celeriac import Celery

    for name in ("BROKER_URL", "BROKER_READ_URL", "BROKER_WRITE_URL", "RESULT_BACKEND"):
        monkeypatch.setenv(f"CELERY_{name}", "redis://127.0.0.1:1/0")
    app = Celery("prefixed", set_as_current=False)
    app.config_from_object({"celery_broker_url": "redis://127.0.0.1:1/1"}, namespace="CELERY")
    url = "memory://elsewhere"
    settings = {"broker_url": url, "result_backend": url, "task_default_queue": "here"}
    with elsewhere(app, settings, app._connections, system_now):
        conf = app.conf
        urls = {conf.broker_url, conf.broker_read_url, conf.broker_write_url, conf.result_backend}
        assert urls == {url}
        assert (conf.task_default_queue, conf["task_default_queue"]) == ("here", "here")
        assert app.amqp.default_queue.name == "here"
        conf.task_default_queue = "there"
    assert app.conf.task_default_queue == "celery"
    assert app.conf.broker_url == "redis://127.0.0.1:1/0"
