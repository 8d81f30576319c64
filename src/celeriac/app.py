"""The app: a ``celery.Celery`` that also publishes, waits and serves without blocking the event loop."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Self, cast

from kombu.utils.imports import symbol_by_name
from kombu.utils.objects import cached_property

from celeriac import compat, config, dead_letters
from celeriac.brokers.base import Broker, DeadLetter
from celeriac.brokers.kombu_transports import for_kombu
from celeriac.brokers.urls import check_for_kombu
from celeriac.connection import Connection, Connections
from celeriac.errors import ConfigurationError
from celeriac.handle import TaskHandle
from celeriac.maps import define_maps
from celeriac.redis.urls import celery_url
from celeriac.registering import HasTasks
from celeriac.stores.base import Store
from celeriac.uploads.storage import Storage
from celeriac.webapp import WebApps

if TYPE_CHECKING:
    from fastapi import FastAPI

    from celeriac.fastapi.router import TasksRouter

__all__ = ["Celery"]

# From here on kombu knows ``sqlite://``; it imports the transport itself when it is used.
symbol_by_name("celeriac.transports:register")()


class Celery(HasTasks):
    """A Celery application for asyncio and FastAPI.

    Takes what ``celery.Celery`` takes: a name, ``broker``, ``backend``, ``include``, … Without a broker, and without
    ``CELERY_BROKER_URL``, everything lives in ``celery.db``, a SQLite file in the current folder.
    """

    task_cls = "celeriac.task:Task"
    amqp_cls = "celeriac.synchronous:RecordingAMQP"
    control_cls = "celeriac.synchronous:DurableControl"
    log_cls = "celeriac.worker.formats:Logging"

    if TYPE_CHECKING:
        # Celery's, which has no types: pyright calls them unknown otherwise, in every app.
        conf: Any
        tasks: Any
        AsyncResult: Any

    def __init__(self, main: str | None = None, **options: Any) -> None:
        self._connections = Connections(self)
        #: The FastAPI app, for the dependencies of tasks: its overrides, its ``state``; in a worker its lifespan runs.
        self.fastapi_app: FastAPI | None = None
        self.web_apps = WebApps(self)
        super().__init__(main, **options)
        self.on_after_finalize.connect(define_maps)

    def _load_config(self) -> Any:
        conf = super()._load_config()
        asked, chosen = config.asked_broker(conf), config.asked_backend(conf)
        compat.set_defaults(conf, config.CELERY_DEFAULTS | config.OWN_DEFAULTS)
        if asked is not None and asked != conf.broker_url:
            conf.broker_url = asked
        if chosen != (conf.result_backend or None):
            conf.result_backend = chosen
        broker_url = conf.broker_url
        defaults: dict[str, Any] = {
            "result_backend": config.default_backend(broker_url),
            **config.default_backend_options(conf, chosen),
        }
        if broker_url.partition(":")[0] in config.AMQP_SCHEMES:
            defaults |= config.amqp_defaults(conf)
        if broker_url.startswith("filesystem:"):
            defaults |= config.FILESYSTEM_DEFAULTS
        if broker_url.startswith("memory:"):
            defaults["broker_transport"] = "celeriac-memory"
        if scheduler := config.default_scheduler(broker_url, chosen or defaults["result_backend"]):
            defaults["beat_scheduler"] = scheduler
        compat.set_defaults(conf, defaults)
        return conf

    def _connection(self, url: str, **options: Any) -> Any:
        check_for_kombu(url)
        if url.startswith(("sqlite:", "memory:")):
            settings = self.settings
            own = {"visibility_timeout": settings.lease, "delivery_limit": settings.delivery_limit}
            passed = options.get("transport_options") or {}
            options["transport_options"] = {**own, **settings.transport_options, **passed}
        try:
            return for_kombu(super()._connection(celery_url(url), **options), url)
        except (KeyError, ValueError) as exc:
            said = str(exc).strip("\"'") if isinstance(exc, KeyError) else exc  # whose text is quoted
            raise ConfigurationError(f"The broker's URL cannot be used: {said}.") from exc

    def _get_backend(self) -> Any:
        # Only for this app: a stock app in the same process keeps Celery's own.
        loader = self.loader
        loader.override_backends = {**config.BACKENDS, **loader.override_backends}
        return super()._get_backend()

    @cached_property
    def settings(self) -> config.Settings:
        """What celeriac has read from the configuration, validated. Raises ConfigurationError."""
        return config.Settings.from_conf(self.conf)

    @cached_property
    def uploads(self) -> Storage:
        """The storage of the files that tasks are called with, of the settings ``celeriac_upload_…``."""
        settings = self.settings
        return Storage(
            settings.upload_url, limit=settings.upload_limit, options=settings.upload_storage_options
        )

    # -- looking -------------------------------------------------------------------------------------------------

    def handle(self, task_id: str) -> TaskHandle[Any]:
        """A handle on the task of this id. Whether there is one shows when it is used."""
        return self._handle(task_id)

    async def queue_size(self, name: str) -> int:
        """How many messages wait in a queue; delayed ones and those being worked on are not counted."""
        return await (await self._connections.here()).broker.size(name)

    async def purge(self, name: str) -> int:
        """Delete what waits in a queue, delayed messages too. Returns how many there were."""
        return await (await self._connections.here()).broker.purge(name)

    async def dead_letters(self, queue: str | None = None, limit: int = 100) -> Sequence[DeadLetter]:
        """Messages that nobody delivers any more, of one queue or of all, newest first; ``limit`` of them at most."""
        return await (await self._connections.here()).broker.dead_letters(queue, limit)

    async def replay_dead_letters(self, ids: Collection[str]) -> int:
        """Put dead letters back into their queues, with a fresh delivery count. Returns how many of them there were.

        Their tasks' records start over, and keep their attempts. Raises BrokerUnavailable and StoreUnavailable.
        """
        connection = await self._connections.here()
        return await dead_letters.replay(connection.broker, connection.store, ids, self._connections.now())

    @property
    def store(self) -> Store:
        """The store of the running loop. Raises ConfigurationError outside ``async with celery:``."""
        return self._opened().store

    @property
    def broker(self) -> Broker:
        """The broker of the running loop. Raises ConfigurationError outside ``async with celery:``."""
        return self._opened().broker

    def _opened(self) -> Connection:
        connection = self._connections.current()
        if connection is None:
            raise ConfigurationError(
                "celeriac is not open on this event loop: "
                "use `async with celery:`, or FastAPI(lifespan=celery.lifespan)."
            )
        return connection

    # -- lifetime ------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self._connections.enter()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._connections.leave()

    def lifespan(self, app: Any) -> AbstractAsyncContextManager[Any]:
        """An ASGI lifespan: ``FastAPI(lifespan=celery.lifespan)`` opens and closes broker and store."""
        return cast("AbstractAsyncContextManager[Any]", self.lifespan_with()(app))

    def lifespan_with(
        self, inner: Callable[..., Any] | None = None, *, worker: bool = False
    ) -> Callable[..., Any]:
        """A lifespan that runs yours inside. With ``worker=True`` a worker runs in the API's process and loop."""
        compose = symbol_by_name("celeriac.fastapi.lifespan:compose")
        return cast("Callable[..., Any]", compose(self, inner, worker=worker))

    def router(
        self,
        *,
        dependencies: Sequence[Any] | None = None,
        owner: Any = None,
        insecure: bool = False,
        records: bool = True,
        tags: Sequence[str] = ("tasks",),
        include_traceback: bool = False,
        heartbeat: float = 15.0,
        slow_client: float = 30.0,
        websocket_origins: Sequence[str] = (),
        longest_wait: float = 60.0,
    ) -> TasksRouter:
        """The routes of records (get, list, result, events by SSE and WebSocket, cancel, retry, delete), those of dead
        letters, and ``expose``.

        ``dependencies`` and ``owner`` are FastAPI's ``Depends(…)``: the first guard every route, the second tells
        whose tasks a caller may see. Cancel, retry, replay, delete are 403 without one of them or ``insecure=True``.
        Without ``records`` there is only what is exposed. ``heartbeat``, ``slow_client`` (after which one that takes no
        events is dropped) and ``longest_wait`` (of ``?wait=``) are seconds. ``websocket_origins``: whose pages may open
        the WebSocket, besides the app's own.
        """
        router = symbol_by_name("celeriac.fastapi.router:TasksRouter")(
            self,
            dependencies=dependencies,
            owner=owner,
            insecure=insecure,
            records=records,
            tags=tags,
            include_traceback=include_traceback,
            heartbeat=heartbeat,
            slow_client=slow_client,
            websocket_origins=websocket_origins,
            longest_wait=longest_wait,
        )
        return cast("TasksRouter", router)

    def owned_by(self, dependency: Any) -> Any:
        """A ``Depends`` for an app, a router or a route: what its requests enqueue is whose the ``dependency`` names.

        ``FastAPI(dependencies=[celery.owned_by(current_user_id)])``. The dependency gives a non-empty str, an int or a
        UUID, or None for a request of nobody's; ``using(owner=…)`` wins.
        """
        return symbol_by_name("celeriac.fastapi.owners:owned_by")(dependency)

    def install(self, app: FastAPI) -> None:
        """Answer our errors as problems (a broker or store that is gone is a 503, wrong arguments are a 422), and give
        each request an id that its tasks carry. A second time it does nothing.

        Raises ConfigurationError once the app serves.
        """
        symbol_by_name("celeriac.fastapi.install:install")(self, app)
        self.fastapi_app = app

    # -- the worker ----------------------------------------------------------------------------------------------

    @cached_property
    def Worker(self) -> Any:  # noqa: N802 - Celery's name
        """The program behind ``celery worker``."""
        return self.subclass_with_self("celeriac.worker.program:Worker")

    @cached_property
    def Beat(self) -> Any:  # noqa: N802 - Celery's name
        """The program behind ``celery beat``."""
        return self.subclass_with_self("celeriac.scheduler.program:Beat")

    @cached_property
    def EmbeddedWorker(self) -> Any:  # noqa: N802 - beside Worker
        """Celery's ``WorkController``, of which a worker inside the API's process is one."""
        return self.subclass_with_self("celery.worker:WorkController", name="EmbeddedWorker")
