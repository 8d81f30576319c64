"""Runs one remote control command: Celery's own, on what :mod:`~celeriac.worker.facade` shows of the worker."""

from __future__ import annotations

import logging
import math
from collections import ChainMap
from collections.abc import Mapping
from typing import Any

from kombu import pidbox
from kombu.entity import Exchange
from kombu.exceptions import EncodeError, InconsistencyError
from kombu.messaging import Producer
from kombu.utils.encoding import safe_repr, safe_str

from celeriac.worker.compat import AttributeDict, Panel, jsonify, maybe_list
from celeriac.worker.facade import ConsumerFacade
from celeriac.worker.mirror import Mirror

__all__ = ["COMMANDS", "CommandNode"]

logger = logging.getLogger("celeriac.worker.control")

# kombu has a type marker and few types: as Any, its half-typed signatures are out of the way.
_Node: Any = pidbox.Node

#: Commands that do not look at the worker's requests. Any other, a user's own included, finds them mirrored.
WITHOUT_REQUESTS = frozenset(
    {
        *("active_queues", "add_consumer", "autoscale", "cancel_consumer", "clock", "conf", "dump_conf"),
        *(
            "disable_events",
            "dump_revoked",
            "dump_schedule",
            "dump_tasks",
            "election",
            "enable_events",
            "heartbeat",
        ),
        *("hello", "memdump", "memsample", "ping", "pool_grow", "pool_restart", "pool_shrink", "rate_limit"),
        *("registered", "report", "revoked", "scheduled", "shutdown", "stats", "time_limit"),
    }
)


def pool_restart(state: Any, **kwargs: Any) -> dict[str, str]:
    """Refused: there are no child processes that could be restarted."""
    if not state.app.conf.worker_pool_restarts:
        raise ValueError("Pool restarts not enabled")
    return {"error": "this worker runs tasks in its own process: restart the worker to load new code"}


def scheduled(state: Any, **kwargs: Any) -> list[dict[str, Any]]:
    """Celery's ``scheduled``: tasks with an eta or a countdown.

    They wait in the broker and not in a worker, so all workers of a queue show the same.
    """
    found: list[dict[str, Any]] = state.consumer.scheduled()
    return found


#: The commands: Celery's, and whatever users have registered.
COMMANDS: Mapping[str, Any] = ChainMap(
    {"pool_restart": pool_restart, "scheduled": scheduled, "dump_schedule": scheduled}, Panel.data
)


def _wrong_limit(arguments: Mapping[str, Any]) -> str | None:
    """What is wrong with a time limit, which every later run of its task would have to take; nothing if it will do."""
    for name in ("soft", "hard"):
        seconds = arguments.get(name)
        if seconds is not None and (type(seconds) not in (int, float) or not 0 <= seconds < math.inf):
            return f"Invalid {name} time limit, which is to be a number of seconds: {seconds!r}"
    return None


def _wrong_queue(arguments: Mapping[str, Any]) -> str | None:
    """What is wrong with the name of a queue; JSON can say what no broker, no terminal and no log can."""
    queue = arguments.get("queue")
    try:
        if type(queue) is str and queue.encode():
            return None
    except UnicodeEncodeError:
        pass
    return f"Invalid name of a queue: {queue!r}"


#: What a command's arguments are asked before Celery's own code takes them as they are.
_CHECKS = {"add_consumer": _wrong_queue, "time_limit": _wrong_limit}


class CommandNode(_Node):  # type: ignore[misc]
    """A pidbox node that prepares Celery's worker state for each command and replies on its own channel."""

    def __init__(self, facade: ConsumerFacade, mirror: Mirror, commands: Mapping[str, Any]) -> None:
        app = facade.app
        state = AttributeDict(app=app, hostname=facade.hostname, consumer=facade, tset=set)
        self._mailbox = app.control.mailbox
        super().__init__(safe_str(facade.hostname), state, None, commands, mailbox=self._mailbox)
        self.facade = facade
        self.mirror = mirror
        self.revoking: frozenset[str] = frozenset()
        self._commands = commands
        self._unknown: set[str] = set()
        self._replies_here = app.conf.broker_read_url == app.conf.broker_write_url

    def handle(self, method: str, arguments: dict[str, Any] | None = None) -> Any:
        arguments = arguments or {}
        if method not in self._commands:
            return self._refuse(method)
        if (check := _CHECKS.get(method)) and (wrong := check(arguments)):
            return {"error": wrong}
        self.facade.subject = arguments.get("task_name")
        self._announce(method, arguments)
        try:
            with self.mirror.filled(requests=method not in WITHOUT_REQUESTS):
                reply = super().handle(method, arguments)
        finally:
            self.facade.subject, self.revoking = None, frozenset()
        if method == "time_limit" and "ok" in reply:
            self.facade.post(self.facade.actions.on_time_limit, arguments["task_name"])
        return reply

    def _refuse(self, method: str) -> dict[str, str]:
        if method not in self._unknown:
            self._unknown.add(method)
            logger.error("No such control command: %s", method)
        return {"error": repr(KeyError(method))}

    def _announce(self, method: str, arguments: Mapping[str, Any]) -> None:
        # Before the command itself, which asks the result backend about each id and may wait for it long.
        if method not in ("revoke", "terminate"):
            return
        ids = tuple(maybe_list(arguments.get("task_id")) or ())
        terminate = method == "terminate" or bool(arguments.get("terminate"))
        self.revoking = frozenset(ids)
        self.facade.post(self.facade.actions.on_revoke, ids, terminate, arguments.get("signal"))

    def reply(self, data: Any, exchange: str, routing_key: str, ticket: str, **kwargs: Any) -> None:
        if not self._replies_here:
            super().reply(data, exchange, routing_key, ticket, **kwargs)
            return
        try:
            self._publish_reply(data, exchange, routing_key, ticket)
        except EncodeError:
            # Arguments that the task serializer refuses must not cost the whole answer.
            self._publish_reply(jsonify(data, unknown_type_filter=safe_repr), exchange, routing_key, ticket)
        except InconsistencyError:
            logger.debug("remote control: nobody waits for the reply to %s any more", ticket)

    def _publish_reply(self, data: Any, exchange: str, routing_key: str, ticket: str) -> None:
        # On the node's own channel and without retries: a dead broker is the thread's business, not a command's.
        target = Exchange(exchange, exchange_type="direct", delivery_mode="transient", durable=False)
        Producer(self.channel, auto_declare=False).publish(
            data,
            exchange=target,
            routing_key=routing_key,
            declare=[target],
            headers={"ticket": ticket, "clock": self._mailbox.clock.forward()},
            serializer=self._mailbox.serializer,
        )
