"""Environment and URLs become settings here; nobody else reads ``os.environ``."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from os import getcwd
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kombu.serialization import registry

from celeriac.errors import ConfigurationError

__all__ = [
    "AMQP_SCHEMES",
    "BACKENDS",
    "CELERY_DEFAULTS",
    "DEFAULT_BROKER_URL",
    "FASTAPI_APP",
    "FILESYSTEM_DEFAULTS",
    "OWN_DEFAULTS",
    "REDIS_SCHEMES",
    "Settings",
    "amqp_defaults",
    "answers",
    "asked_backend",
    "asked_broker",
    "default_backend",
    "default_backend_options",
    "default_scheduler",
    "records_url",
    "working_folder",
]

logger = logging.getLogger("celeriac")

#: Without a broker URL everything lives in this file, in the folder where the process was started.
DEFAULT_BROKER_URL = "sqlite:///celery.db"

#: Where relative files are. By a name of its own, bound early: tools that look for blocking calls spare it.
working_folder = getcwd

#: The environment variable that names the FastAPI app.
FASTAPI_APP = "CELERIAC_FASTAPI_APP"

#: Schemes of URLs that mean a Redis server.
REDIS_SCHEMES = frozenset(
    {"redis", "rediss", "valkey", "valkeys", "unix", "redis+socket", "socket", "sentinel"}
)

#: Names under which an app finds a result backend of ours that is Celery's elsewhere.
BACKENDS = {
    "rpc": "celeriac.backends.rpc:RPCBackend",
    **dict.fromkeys(
        ("redis", "rediss", "valkey", "valkeys", "unix", "socket"), "celeriac.backends.redis:RedisBackend"
    ),
    "sentinel": "celeriac.backends.redis:SentinelBackend",
}

#: Celery's settings whose defaults differ, because people who enqueue from a request expect that the task runs.
CELERY_DEFAULTS: dict[str, Any] = {
    "broker_url": DEFAULT_BROKER_URL,
    # For ever: a worker that gave up would not be there when its broker returns.
    "broker_connection_max_retries": None,
    "broker_connection_retry_on_startup": True,
    "result_extended": True,
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    "task_track_started": True,
    "timezone": "UTC",
    "worker_autoscaler": "celeriac.worker.autoscale:create_autoscaler",
    "worker_cancel_long_running_tasks_on_connection_loss": True,
    "worker_consumer": "celeriac.worker.consumer:create_consumer",
    "worker_pool": "celeriac.worker.pool:TaskPool",
    "worker_prefetch_multiplier": 1,
}

#: Settings of ours, with what they mean.
OWN_DEFAULTS: dict[str, Any] = {
    # Seconds that a delivery belongs to a worker that no longer renews it: how long a crash goes unnoticed.
    # ``broker_transport_options["visibility_timeout"]``, where it is set, means the same and wins, except on Redis:
    # there it is an hour or a day, because stock workers do not renew, and says how long what they hold is theirs.
    "celeriac_lease": 30.0,
    # Deliveries without an outcome after which a message is dead-lettered.
    "celeriac_delivery_limit": 5,
    # Seconds after which ``enqueue`` raises PublishTimeout.
    "celeriac_publish_deadline": 5.0,
    # Seconds over which a message of an unknown task is offered again before it is dead-lettered.
    "celeriac_unknown_task_grace": 30.0,
    # Seconds that running tasks get to finish after SIGTERM.
    "celeriac_shutdown_grace": 25.0,
    # Coroutine slots of a worker that was not given a concurrency.
    "celeriac_concurrency": 100,
    # Threads for ``def`` tasks; None means as many as there are slots, 64 at most.
    "celeriac_threads": None,
    # Seconds that the schedule belongs to a beat that no longer renews it: how long the death of one goes unnoticed.
    "celeriac_beat_lease": 10.0,
    # The FastAPI app for the dependencies of tasks, as "module:name"; None finds the one beside the Celery app.
    # CELERIAC_FASTAPI_APP, by which ``celeriac dev`` tells its worker, means the same, and the setting wins.
    "celeriac_fastapi_app": None,
    # Whether a worker runs the lifespan of the FastAPI app.
    "celeriac_worker_lifespan": True,
    # Whether arguments are validated against the task's annotations.
    "celeriac_validate_arguments": True,
    # Context variables that travel with a task, as "module:variable"; their values must be JSON's.
    "celeriac_propagate": (),
    # The HTTP header that a request's id comes in, and goes out in.
    "celeriac_request_id_header": "X-Request-ID",
    # Where the files that tasks are called with wait for them: a folder, or what fsspec knows (``s3://bucket/prefix``).
    # API and workers need the same.
    "celeriac_upload_url": "celery-uploads",
    # Bytes that the files of one call may have together; None means no limit.
    "celeriac_upload_limit": 100_000_000,
    # What fsspec's file system takes besides: credentials, endpoints, …
    "celeriac_upload_storage_options": {},
    # Where the records of tasks are with ``result_backend = "rpc://"``, which keeps none; None means where they are
    # without a result backend.
    "celeriac_records_url": None,
}


#: What RabbitMQ's queues are unless somebody asks for classic ones: replicated, and their deliveries are counted.
AMQP_DEFAULTS: dict[str, Any] = {
    "task_create_missing_queue_type": "quorum",
    "task_default_queue_type": "quorum",
}


def amqp_defaults(conf: Any) -> Mapping[str, Any]:
    """The defaults for RabbitMQ: plain Celery's where all queues are to have priorities, which quorum queues lack."""
    return {} if conf.task_queue_max_priority else AMQP_DEFAULTS


#: kombu reads from another folder than it writes to, unless it is told otherwise: ``filesystem://`` alone shall do.
FILESYSTEM_DEFAULTS = {
    "broker_transport_options": {"data_folder_in": "data_out", "data_folder_out": "data_out"}
}

#: Celery's defaults, in seconds, of ``broker_heartbeat`` and ``broker_connection_timeout``.
_CELERYS_HEARTBEAT, _CELERYS_CONNECTION_TIMEOUT = 120, 4

#: Schemes of URLs that mean RabbitMQ.
AMQP_SCHEMES = frozenset({"amqp", "amqps", "pyamqp"})


def asked_broker(conf: Any) -> str | None:
    """The broker that a Celery configuration without our defaults names, if it names one.

    Raises ConfigurationError where workers would read from another broker than clients write to, and for settings that
    Celery has long replaced by ``broker_url``.
    """
    urls = {_first_url(url) for url in (conf.broker_write_url, conf.broker_read_url) if url}
    if len(urls) > 1:
        raise ConfigurationError(
            "broker_read_url and broker_write_url name different brokers, and celeriac uses one. Set broker_url."
        )
    old = [name for name in ("broker_host", "broker_transport", "broker_vhost") if conf.get(name)]
    if old and not conf.get("broker_url"):
        raise ConfigurationError(f"{old[0]} is set, but no broker_url. Write the broker as one URL.")
    return urls.pop() if urls else None


def _first_url(url: Any) -> str:
    """One URL of a failover list, ``a;b`` or a list. Sentinels are one URL: each of them knows the others.

    The servers of a RabbitMQ cluster stay together.
    """
    urls = list(url) if isinstance(url, (list, tuple)) else [url]
    if len(urls) == 1 and not str(urls[0]).startswith("sentinel:"):
        urls = str(urls[0]).split(";")
    if all(str(each).partition(":")[0] in AMQP_SCHEMES for each in urls):
        return ";".join(map(str, urls))
    if len(urls) > 1:
        logger.warning("Of %d broker URLs celeriac uses the first: it does not fail over.", len(urls))
    return str(urls[0])


def asked_backend(conf: Any) -> str | None:
    """The result backend that a configuration names. ``redis`` alone stands for ``redis_host``, ``redis_port``, …"""
    chosen: str | None = conf.result_backend or None
    if chosen not in ("redis", "rediss"):
        return chosen
    user, password = conf.get("redis_username") or "", conf.get("redis_password") or ""
    login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if password else ""
    return (
        f"{chosen}://{login}{conf.redis_host or 'localhost'}:{conf.redis_port or 6379}/{conf.redis_db or 0}"
    )


def default_backend(broker_url: str) -> str:
    """The result backend that goes with a broker: the same place where records can live, else the embedded file."""
    return broker_url if _is_ours(broker_url) else DEFAULT_BROKER_URL


def _is_ours(url: str) -> bool:
    """Whether a URL means a place that can be broker and store."""
    scheme = url.partition(":")[0]
    return scheme in {"sqlite", "memory"} or scheme in REDIS_SCHEMES


def answers(conf: Any) -> bool:
    """Whether the result backend is ``rpc://``: workers send results to whoever has called, and nothing is kept.

    Raises ConfigurationError for a broker that knows no such queues.
    """
    asked = str(conf.result_backend or "").partition("://")[0] == "rpc"
    if asked and conf.broker_url.partition(":")[0] not in AMQP_SCHEMES:
        raise ConfigurationError(
            "result_backend is rpc://, which celeriac has for RabbitMQ alone: remove it, and results are kept where "
            "the records of tasks are."
        )
    return asked


def records_url(conf: Any) -> str | None:
    """Where the records of tasks are: the result backend, unless that keeps none. Raises ConfigurationError."""
    if not answers(conf):
        return conf.result_backend or None
    return str(conf.celeriac_records_url or default_backend(conf.broker_url))


def default_backend_options(conf: Any, chosen: str | None) -> dict[str, Any]:
    """Settings of the result backend that follow the broker's where both are one Redis server: how to get there.

    ``chosen`` is the result backend that the user has set, if any. A ``global_keyprefix`` follows only where there is
    none: stock processes, which were told of the result backend as well, have no prefix there.
    """
    broker_url = conf.broker_url
    if broker_url.partition(":")[0] not in REDIS_SCHEMES or chosen not in (None, broker_url):
        return {}
    options = dict(conf.broker_transport_options or {})
    if chosen is not None:
        options.pop("global_keyprefix", None)
    ssl = conf.broker_use_ssl
    if ssl and not isinstance(ssl, Mapping):
        ssl = {"ssl_cert_reqs": "required"}
    return {"result_backend_transport_options": options, "redis_backend_use_ssl": ssl}


def default_scheduler(broker_url: str, result_backend: str | None) -> str | None:
    """The scheduler of ``celery beat`` that keeps its state where messages or records are, if there is one.

    RabbitMQ cannot keep it: the file of the records does.
    """
    kept = result_backend if broker_url.partition(":")[0] in AMQP_SCHEMES else broker_url
    is_file = (kept or "").partition(":")[0] == "sqlite"
    return "celeriac.scheduler.database:DatabaseScheduler" if is_file else None


@dataclass(frozen=True, slots=True)
class Settings:
    """What celeriac itself needs to know, validated once. Durations are seconds."""

    broker_url: str
    #: Where records are; with ``rpc://`` as result backend, the place that stands in for it.
    result_backend: str | None
    #: Whether workers also send results to whoever has called.
    answers: bool
    lease: float
    delivery_limit: int
    publish_deadline: float
    unknown_task_grace: float
    shutdown_grace: float
    concurrency: int
    threads: int | None
    result_expires: float | None
    beat_lease: float
    validate_arguments: bool
    propagate: tuple[str, ...]
    request_id_header: str
    upload_url: str
    upload_limit: int | None
    upload_storage_options: Mapping[str, Any]
    fastapi_app: str | None
    worker_lifespan: bool
    connection_retry: bool
    connection_retry_on_startup: bool
    connection_max_retries: int | None
    transport_options: Mapping[str, Any]
    result_transport_options: Mapping[str, Any]

    @property
    def kept_in(self) -> str:
        """Where is kept what a transport of kombu's cannot keep: beside the records, or else in the embedded file."""
        backend = self.result_backend
        return backend if backend is not None and _is_ours(backend) else DEFAULT_BROKER_URL

    @classmethod
    def from_conf(cls, conf: Any) -> Settings:
        """Read them from a Celery configuration. Raises ConfigurationError with the setting's name."""
        if conf.result_backend:
            _check_result_serializer(conf.result_serializer)
        options = _with_ssl(conf.broker_transport_options, conf.broker_use_ssl)
        if conf.broker_url.partition(":")[0] in AMQP_SCHEMES:
            options = _amqp_options(conf) | options
        expires = conf.result_expires
        if isinstance(expires, timedelta):
            expires = expires.total_seconds()
        threads = conf.celeriac_threads
        lease = conf.celeriac_lease
        if conf.broker_url.partition(":")[0] not in REDIS_SCHEMES:
            lease = options.get("visibility_timeout") or lease
        return cls(
            broker_url=conf.broker_url,
            result_backend=records_url(conf),
            answers=answers(conf),
            lease=_number("celeriac_lease", lease, minimum=0.5),
            delivery_limit=int(_number("celeriac_delivery_limit", conf.celeriac_delivery_limit, minimum=1)),
            publish_deadline=_number(
                "celeriac_publish_deadline", conf.celeriac_publish_deadline, minimum=0.01
            ),
            unknown_task_grace=_number("celeriac_unknown_task_grace", conf.celeriac_unknown_task_grace),
            shutdown_grace=_number("celeriac_shutdown_grace", conf.celeriac_shutdown_grace),
            concurrency=int(_number("celeriac_concurrency", conf.celeriac_concurrency, minimum=1)),
            threads=None if threads is None else int(_number("celeriac_threads", threads, minimum=1)),
            result_expires=float(expires) if expires else None,
            beat_lease=_number("celeriac_beat_lease", conf.celeriac_beat_lease, minimum=0.5),
            validate_arguments=bool(conf.celeriac_validate_arguments),
            propagate=_paths("celeriac_propagate", conf.celeriac_propagate),
            request_id_header=_header("celeriac_request_id_header", conf.celeriac_request_id_header),
            upload_url=_upload_url(conf.celeriac_upload_url),
            upload_limit=_upload_limit(conf.celeriac_upload_limit),
            upload_storage_options=_upload_options(conf.celeriac_upload_storage_options),
            fastapi_app=conf.celeriac_fastapi_app or os.environ.get(FASTAPI_APP) or None,
            worker_lifespan=bool(conf.celeriac_worker_lifespan),
            connection_retry=bool(conf.broker_connection_retry),
            connection_retry_on_startup=bool(conf.broker_connection_retry_on_startup),
            # Celery takes 0 for "no limit", too.
            connection_max_retries=conf.broker_connection_max_retries or None,
            transport_options=options,
            result_transport_options=_result_options(conf),
        )


def _upload_url(url: Any) -> str:
    if not isinstance(url, (str, os.PathLike)) or not str(url).strip():
        raise ConfigurationError(f"celeriac_upload_url must be a folder or a URL of fsspec's, not {url!r}.")
    # A relative folder is where the process was started, whatever folder it changes to.
    return str(url) if "://" in str(url) or "::" in str(url) else str(Path(url).absolute())


def _upload_limit(limit: Any) -> int | None:
    return None if limit is None else int(_number("celeriac_upload_limit", limit, minimum=1))


def _upload_options(options: Any) -> Mapping[str, Any]:
    if not isinstance(options, Mapping):
        raise ConfigurationError(f"celeriac_upload_storage_options must be a dictionary, not {options!r}.")
    return options


def _check_result_serializer(name: str) -> None:
    # Everybody reads records: lists, searches, browsers, chords, Redis' scripts. None of them could read a pickle, and
    # those that could should not.
    if registry.name_to_type.get(name, name) != "application/json":
        raise ConfigurationError(
            f"result_serializer is {name!r}, but celeriac keeps results as JSON. Remove the setting; "
            "what a task's return annotation names comes back as that."
        )


def _amqp_options(conf: Any) -> dict[str, Any]:
    """How to reach RabbitMQ, where Celery has settings for it. Its defaults are not asked for: ours go by the lease."""
    strategy = conf.broker_failover_strategy
    if strategy not in (None, "round-robin", "shuffle"):
        raise ConfigurationError(
            f'broker_failover_strategy must be "round-robin" or "shuffle", not {strategy!r}.'
        )
    named = {
        "heartbeat": (conf.broker_heartbeat, _CELERYS_HEARTBEAT),
        "connect_timeout": (conf.broker_connection_timeout, _CELERYS_CONNECTION_TIMEOUT),
        "login_method": (conf.broker_login_method, None),
        "failover_strategy": (strategy, None),
    }
    return {name: value for name, (value, default) in named.items() if value and value != default}


def _with_ssl(options: Mapping[str, Any] | None, ssl: Any) -> dict[str, Any]:
    return {**({"ssl": ssl} if ssl else {}), **(options or {})}


def _result_options(conf: Any) -> dict[str, Any]:
    """How to reach the result backend: its transport options, and what Celery has settings of their own for."""
    named = {
        "username": conf.get("redis_username"),
        "password": conf.get("redis_password"),
        "client_name": conf.get("redis_client_name"),
        "credential_provider": conf.get("redis_backend_credential_provider"),
        "health_check_interval": conf.get("redis_backend_health_check_interval"),
        "socket_connect_timeout": conf.get("redis_socket_connect_timeout"),
    }
    options = _with_ssl(conf.result_backend_transport_options, conf.redis_backend_use_ssl)
    return {name: value for name, value in named.items() if value} | options


def _paths(name: str, value: Any) -> tuple[str, ...]:
    paths = (value,) if isinstance(value, str) else tuple(value or ())
    for path in paths:
        if not (isinstance(path, str) and re.fullmatch(r"[\w.]+:\w+", path)):
            raise ConfigurationError(f'{name} lists "module:variable" paths, not {path!r}.')
    return paths


def _header(name: str, value: Any) -> str:
    if not (isinstance(value, str) and re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", value)):
        raise ConfigurationError(f"{name} must be the name of an HTTP header, not {value!r}.")
    return value


def _number(name: str, value: Any, minimum: float = 0.0) -> float:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ConfigurationError(f"{name} must be a number, not {value!r}.") from None
    if number < minimum:
        raise ConfigurationError(f"{name} must be at least {minimum:g}, not {value!r}.")
    return number


def color_wanted(is_terminal: bool) -> bool:
    """Whether output is coloured: on a terminal, unless NO_COLOR is set."""
    return is_terminal and not os.environ.get("NO_COLOR")
