"""The other task queues on Redis, each in its own environment, and as fast as its documentation and source let it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from benchmarks.peer_environments import peer_python, why_no_peer
from benchmarks.processes import Command
from benchmarks.systems.base import WorkerOptions
from benchmarks.systems.redis import RedisSystem

if TYPE_CHECKING:
    import redis

__all__ = ["PEERS", "Peer"]

#: Threads of a dramatiq process, and messages that it fetches at once: with the default of two for each thread it sits
#: idle between fetches.
_DRAMATIQ_THREADS = 8
_DRAMATIQ_PREFETCH = 500

#: Tasks that a taskiq process runs at once.
_TASKIQ_TASKS = 100


class Peer(RedisSystem):
    """A task queue on Redis that is not Celery.

    ``start`` makes the arguments of a worker, ``unfinished`` looks into the keys, ``env`` chooses between variants.
    ``asynchronous`` says whether the task is an ``async def``, ``ten`` how ten workers are started.
    """

    def __init__(
        self,
        name: str,
        peer: str,
        start: Callable[[WorkerOptions], Sequence[str]],
        unfinished: Callable[[redis.Redis], int],
        env: Mapping[str, str] = {},
        asynchronous: bool = True,
        ten: WorkerOptions = WorkerOptions(processes=10),  # noqa: B008 - frozen
    ) -> None:
        self.name = name
        self.asynchronous = asynchronous
        self.ten = ten
        self.app = f"benchmarks.apps.{peer}"
        self.python = peer_python(peer)
        self._peer = peer
        self._start = start
        self._unfinished = unfinished
        self._env = env

    def unavailable(self) -> str | None:
        return super().unavailable() or why_no_peer(self._peer)

    def environment(self, url: str) -> Mapping[str, str]:
        return {"BENCHMARK_REDIS": url, **self._env}

    def unfinished(self, server: redis.Redis) -> int:
        return self._unfinished(server)

    def worker(self, options: WorkerOptions) -> Command:
        concurrency = options.concurrency
        env = {} if concurrency is None else {"BENCHMARK_CONCURRENCY": str(concurrency)}
        return Command(tuple(self._start(options)), env, self.python)


class _Arq(Peer):
    """arq, which has no option for more than one process."""

    def workers(self, options: WorkerOptions) -> Sequence[Command]:
        return [self.worker(options)] * (options.processes or 1)


def _arq(options: WorkerOptions) -> Sequence[str]:
    return ["arq", "benchmarks.apps.arq.WorkerSettings", "--custom-log-dict", "benchmarks.apps.arq.LOGGING"]


def _dramatiq(options: WorkerOptions) -> Sequence[str]:
    processes, threads = options.processes or 1, options.concurrency or _DRAMATIQ_THREADS
    return ["dramatiq", "benchmarks.apps.dramatiq:broker", "-p", str(processes), "-t", str(threads)]


def _saq(options: WorkerOptions) -> Sequence[str]:
    return ["saq", "benchmarks.apps.saq.settings", "--workers", str(options.processes or 1)]


def _streaq(options: WorkerOptions) -> Sequence[str]:
    return ["streaq", "run", "benchmarks.apps.streaq:worker", "--workers", str(options.processes or 1)]


def _taskiq(options: WorkerOptions) -> Sequence[str]:
    arguments = ["taskiq", "worker", "benchmarks.apps.taskiq:broker", "--log-level", "WARNING"]
    arguments += ["--workers", str(options.processes or 1)]
    return [*arguments, "--max-async-tasks", str(options.concurrency or _TASKIQ_TASKS)]


def _in_taskiq_stream(server: redis.Redis) -> int:
    """What is in the stream, but for what was read and acknowledged: it stays there."""
    groups = server.xinfo_groups("taskiq")
    read = sum(int(group["entries-read"] or 0) - int(group["pending"]) for group in groups)
    return int(server.xlen("taskiq")) - read


_PREFETCH = {"dramatiq_queue_prefetch": str(_DRAMATIQ_PREFETCH)}


def _in_dramatiq(server: redis.Redis) -> int:
    return int(server.hlen("dramatiq:default.msgs"))


_TASKIQ_STREAM = {"BENCHMARK_QUEUE": "stream"}
_DEF = {**_PREFETCH, "BENCHMARK_FUNCTION": "def"}

_TEN_THREADS = WorkerOptions(concurrency=10)

#: With more jobs each, they are in each other's way: they all look at the same ones.
_TEN_ARQ = WorkerOptions(processes=10, concurrency=100)

PEERS: tuple[Peer, ...] = (
    Peer("taskiq, list", "taskiq", _taskiq, lambda server: int(server.llen("taskiq"))),
    Peer("taskiq, stream", "taskiq", _taskiq, _in_taskiq_stream, _TASKIQ_STREAM),
    Peer("dramatiq, async def", "dramatiq", _dramatiq, _in_dramatiq, _PREFETCH),
    Peer("dramatiq, def", "dramatiq", _dramatiq, _in_dramatiq, _DEF, False, _TEN_THREADS),
    _Arq("arq", "arq", _arq, lambda server: int(server.zcard("arq:queue")), ten=_TEN_ARQ),
    Peer("SAQ", "saq", _saq, lambda server: int(server.zcard("saq:default:incomplete"))),
    Peer("streaq", "streaq", _streaq, lambda server: int(server.xlen("streaq:default:queues:normal"))),
)
