"""What an app has in a test instead of its own settings."""

from __future__ import annotations

from typing import Any

__all__ = ["settings_at"]

#: Seconds of a lease: no worker dies here, and moving the clock must not take a task from the one that runs it.
_LEASE = 100 * 366 * 86_400.0

_SETTINGS: dict[str, Any] = {
    "broker_transport": "celeriac-memory",
    "broker_transport_options": {},
    "broker_use_ssl": False,
    "celeriac_lease": _LEASE,
    # A test has nobody else who might know the task.
    "celeriac_unknown_task_grace": 0.0,
    "celeriac_shutdown_grace": 0.0,
    "celeriac_upload_storage_options": {},
    "redis_backend_use_ssl": None,
    "result_backend_transport_options": {},
    # However far the clock is moved, a test can look at what there was.
    "result_expires": None,
    "task_always_eager": False,
    "worker_enable_remote_control": False,
}


def settings_at(url: str) -> dict[str, Any]:
    """The settings of a test whose queues, records and files are at this URL."""
    return {**_SETTINGS, "broker_url": url, "result_backend": url, "celeriac_upload_url": url}
