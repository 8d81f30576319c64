"""``result_backend = "redis://…"``: Celery's Redis backends, over celeriac's records."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from celery.backends import redis as stock
from kombu.utils.encoding import bytes_to_str
from kombu.utils.objects import cached_property

from celeriac.backends.planned import PlannedBackend
from celeriac.backends.recording import RecordingBackend
from celeriac.backends.redis_results import PatientResultConsumer
from celeriac.redis.scripts import Script
from celeriac.redis.server import REPLY_TIMEOUT, Server
from celeriac.redis.trouble import unavailable
from celeriac.redis.urls import celery_url
from celeriac.stores import redis_layout as layout
from celeriac.stores.records import Transition
from celeriac.stores.redis_errors import store_error

__all__ = ["RedisBackend", "SentinelBackend"]

#: What one slice of a clean-up looks at.
_TRIMMED = 200


class _RecordingRedisBackend(PlannedBackend, RecordingBackend):
    """What both backends do in their own way."""

    #: Results are put together as texts, by whoever writes them.
    supports_result_compression = False

    ResultConsumer = PatientResultConsumer

    def __init__(self, *args: Any, url: str | None = None, **options: Any) -> None:
        super().__init__(*args, url=None if url is None else _stock_url(url, options["app"]), **options)
        transport_options = self.app.conf.result_backend_transport_options or {}
        self._prefix = layout.key_prefix(transport_options)
        self._server = Server.from_url(self.url or "redis://", transport_options)

    def record_published(self, transitions: Sequence[Transition]) -> None:
        """Apply transitions, for synchronous code that publishes. Raises StoreUnavailable within seconds."""
        with self._store_errors():
            self._apply(transitions)

    def _store_result(self, *args: Any, **options: Any) -> None:
        # A worker's result is worth more patience than a publisher's record: Celery's own, by ``retry_policy``.
        step = self._step(*args, **options)
        with self._store_errors():
            self.ensure(self._apply, ([step],))

    def request_cancel(self, task_ids: Sequence[str], *, running: bool = True) -> Collection[str]:
        """Mark tasks as cancelled, those that run only with ``running``. Returns which. Raises StoreUnavailable."""
        if not task_ids:
            return set()
        seconds = self._kept
        arguments = layout.cancel_arguments(self._prefix, seconds, task_ids, time.time(), running=running)
        with self._store_errors():
            return {bytes_to_str(task_id) for task_id in self._run(layout.CANCEL, arguments)}

    def _add_pending_result(self, task_id: str, result: Any, weak: bool = False) -> None:
        # Whoever waits for a result has it at hand; canvas makes many for which nobody does.
        super()._add_pending_result(task_id, result, weak=True)

    def is_cancelled(self, task_id: str) -> bool:
        """Whether the task is marked as cancelled, or revoked. Raises StoreUnavailable within seconds."""
        with self._store_errors():
            return self._recorder.zscore(f"{self._prefix}celeriac:cancelled", task_id) is not None

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Nothing: ``get`` listens when it is called, and reads what it may have missed."""

    def get_many(self, task_ids: Any, *args: Any, max_iterations: int | None = None, **options: Any) -> Any:
        """As Celery's, which sleeps half a second after a single look, too; ``GroupResult.get`` begins with one."""
        if max_iterations == 1 and not args:
            options["interval"] = 0
        return super().get_many(task_ids, *args, max_iterations=max_iterations, **options)

    def _forget(self, task_id: str) -> None:
        with self._store_errors():
            self._run(layout.FORGET, [self._prefix, task_id])

    def cleanup(self) -> None:
        """Delete what has expired."""
        if self._kept is None:
            return
        with self._store_errors():
            complete = False
            while not complete:
                arguments = layout.trim_arguments(
                    self._prefix, self._kept, time.time(), looks=_TRIMMED, compared=0
                )
                _, complete, *_ = self._run(layout.TRIM, arguments)

    @property
    def _kept(self) -> float | None:
        return float(self.expires) if self.expires else None

    def _apply(self, transitions: Sequence[Transition]) -> None:
        self._run(layout.TRANSITION, layout.transition_arguments(self._prefix, self._kept, transitions))

    def _run(self, script: Script, arguments: Sequence[Any]) -> Any:
        from redis.exceptions import NoScriptError

        try:
            return self._recorder.evalsha(script.sha, 0, *arguments)
        except NoScriptError:
            return self._recorder.eval(script.text, 0, *arguments)

    @cached_property
    def _recorder(self) -> Any:
        """A client that gives up soon, and leaves it to its caller whether to try again."""
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        parameters = {**self.connparams, "retry": Retry(NoBackoff(), 0)}
        for name in ("socket_timeout", "socket_connect_timeout"):
            if name in parameters:
                parameters[name] = min(parameters[name] or REPLY_TIMEOUT, REPLY_TIMEOUT)
        return self._create_client(**parameters)

    @contextmanager
    def _store_errors(self) -> Iterator[None]:
        from redis.exceptions import RedisError

        try:
            yield
        except (RedisError, OSError) as exc:
            raise store_error(unavailable(exc, self._server)) from exc


class RedisBackend(_RecordingRedisBackend, stock.RedisBackend):  # type: ignore[misc]
    """Celery's Redis backend, which also keeps events, attempts, lists and cancel marks.

    It reads as Celery's does, and writes as the asyncio store does, with the same scripts and under the same keys.
    """


class SentinelBackend(_RecordingRedisBackend, stock.SentinelBackend):  # type: ignore[misc]
    """The same for a group of servers that sentinels watch."""


def _stock_url(url: str, app: Any) -> str:
    """The URL as Celery's backend takes it."""
    url = celery_url(url).removeprefix("redis+")
    asked = (
        isinstance(app.conf.redis_backend_use_ssl, Mapping)
        and "ssl_cert_reqs" in app.conf.redis_backend_use_ssl
    )
    if url.startswith("rediss:") and "ssl_cert_reqs" not in url and not asked:
        # Celery wants it to be said; what is safe goes without saying.
        return f"{url}{'&' if '?' in url else '?'}ssl_cert_reqs=required"
    return url
