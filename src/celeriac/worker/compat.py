"""Celery's undocumented names that the worker needs, each with what it is needed for.

Apart from ``celeriac.compat``, because an API process should not have to import Celery's worker.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

# celery.bootsteps.Blueprint: `.state` and `.human_state()` are read by the WorkController and by signal handlers.
from celery.bootsteps import Blueprint

# celery.utils.collections.AttributeDict: the state object of stock commands.
from celery.utils.collections import AttributeDict

# celery.utils.functional.maybe_list: commands accept one id or several.
from celery.utils.functional import maybe_list

# celery.utils.serialization.jsonify: an equal value of JSON types only.
from celery.utils.serialization import jsonify

# celery.utils.sysinfo.load_average: the three numbers of a heartbeat.
from celery.utils.sysinfo import load_average

# celery.utils.threads.bound_open_broker_sockets: a timeout on the sockets of a connection that may be half-open.
from celery.utils.threads import bound_open_broker_sockets

# celery.utils.time.rate: "100/m" as starts per second.
from celery.utils.time import rate as parse_rate

# celery.utils.time.utcoffset: hours, as event receivers expect them.
from celery.utils.time import utcoffset

# celery.worker.state.requests, .active_requests, .reserved_requests, .total_count, .all_total_count: what the
# commands of celery.worker.control read (their default arguments bind the objects, so they are filled in place);
# .revoked, .revoked_stamps: what the commands leave there; .SOFTWARE_INFO: how a stock worker names itself, which
# monitors tell workers apart by.
from celery.worker import state as worker_state

# celery.worker.autoscale.AUTOSCALE_KEEPALIVE: seconds, from the environment; Autoscaler: for Celery's own pools.
from celery.worker.autoscale import AUTOSCALE_KEEPALIVE
from celery.worker.autoscale import Autoscaler as CeleryAutoscaler

# celery.worker.control.Panel: the registry of commands.
from celery.worker.control import Panel

__all__ = [
    "AUTOSCALE_KEEPALIVE",
    "AttributeDict",
    "Blueprint",
    "CeleryAutoscaler",
    "Panel",
    "bound_open_broker_sockets",
    "check_subscription",
    "jsonify",
    "live_receivers",
    "load_average",
    "maybe_list",
    "parse_rate",
    "receiver_function",
    "utcoffset",
    "worker_state",
]


def check_subscription(transport: Any) -> None:
    """Ping what an idle connection is subscribed to, on Redis; nothing elsewhere.

    ``kombu.transport.redis.MultiChannelPoller.maybe_check_subclient_health``: kombu calls it from its own event
    loop only, and without it a subscription that a firewall dropped would stay silent for ever.
    """
    check = getattr(getattr(transport, "cycle", None), "maybe_check_subclient_health", None)
    if check is not None:
        check()


def live_receivers(signal: Any, sender: Any) -> list[Callable[..., Any]]:
    """Who gets a signal from this sender: ``celery.utils.dispatch.signal.Signal._live_receivers``.

    ``Signal.send`` calls them in one go, and says neither how long each has taken nor awaits a coroutine.
    """
    receivers: list[Callable[..., Any]] = signal._live_receivers(sender)
    return receivers


def receiver_function(receiver: Callable[..., Any]) -> Callable[..., Any]:
    """The user's function behind a receiver: ``Signal.connect(retry=True)`` wraps it in ``_try_receiver_over_time``."""
    if getattr(receiver, "__name__", "") != "_try_receiver_over_time":
        return receiver
    wrapped: Callable[..., Any] = inspect.getclosurevars(receiver).nonlocals.get("retry_fun", receiver)
    return wrapped
