"""What Redis and the network complain of, as one sentence that names the cause and the cure."""

from __future__ import annotations

import ssl

from celeriac.errors import BrokerUnavailable
from celeriac.redis.server import ConnectTimeout, Server

__all__ = ["turns_away", "unavailable"]

#: The code of an error reply → what it means here.
_PASSING = {
    "OOM": "is out of memory: raise its maxmemory, or remove what is not needed",
    "READONLY": "is a read-only replica: the URL has to name the primary, or a sentinel",
    "MISCONF": "refuses to write because it cannot save to its disk: look at its log and at the disk",
    "LOADING": "is loading its data from disk, and will work when it has finished",
    "MASTERDOWN": "is a replica that has lost its primary",
    "NOREPLICAS": "has fewer replicas than its min-replicas-to-write asks for",
    "BUSY": "is busy with a script that does not end",
    "CLUSTERDOWN": "is a cluster that is down",
}

_NO_CLUSTER = (
    "is a cluster, which cannot hold Celery's queues: the URL has to name a single server or a sentinel"
)

_PERMANENT = {
    "NOPERM": "does not allow its user what celeriac needs, which docs/redis.md lists",
    "NOAUTH": "wants a password: put it into the URL, as in redis://:password@host",
    "WRONGPASS": "does not accept the user or the password of the URL",
    "WRONGTYPE": "keeps something else under a key that celeriac needs: use another database or a global_keyprefix",
    "CERTIFICATE": "shows a certificate that is not trusted here: look at ssl_ca_certs and at the host's name",
    "MOVED": _NO_CLUSTER,
    "CROSSSLOT": _NO_CLUSTER,
}


def unavailable(error: BaseException, server: Server) -> BrokerUnavailable:
    """The error that tells what ``error`` means for whoever asked the server for something."""
    code, said = _code(error)
    permanent = code in _PERMANENT
    meaning = _PERMANENT.get(code) or _PASSING.get(code)
    if meaning is not None:
        sentence = f"{server} {meaning}. It said: {said}"
    elif code == "ERR":
        permanent = "unknown command" in said or "wrong number of arguments" in said
        cure = " celeriac needs Redis 6.2 or newer, or Valkey." if permanent else ""
        sentence = f"{server} answered with an error: {said}.{cure}"
    elif code == "TIMEOUT":
        seconds = server.connect_timeout if isinstance(error, ConnectTimeout) else server.reply_timeout
        sentence = f"{server} does not answer: nothing came back within {seconds:g} seconds."
    else:
        sentence = f"{server} cannot be reached: {said}"
    found = BrokerUnavailable(sentence)
    found.permanent = permanent
    if code in _PASSING:
        found.why = f"Redis {_PASSING[code].partition(':')[0]}."
    found.__cause__ = error
    return found


def turns_away(error: BaseException) -> bool:
    """Whether it is the answer of a server that does nothing here, while another connection may lead to a better one.

    So a primary answers that has become a replica.
    """
    from redis.exceptions import AuthenticationError, BusyLoadingError, MasterDownError, ReadOnlyError

    return isinstance(error, AuthenticationError | BusyLoadingError | MasterDownError | ReadOnlyError)


def _code(error: BaseException) -> tuple[str, str]:
    """The code of an error reply, which redis-py takes off those that it knows, and the rest of what was said."""
    from redis import exceptions

    known: tuple[tuple[type[BaseException], str], ...] = (
        (exceptions.OutOfMemoryError, "OOM"),
        (exceptions.ReadOnlyError, "READONLY"),
        (exceptions.NoPermissionError, "NOPERM"),
        (exceptions.AuthenticationError, "WRONGPASS"),
        (exceptions.BusyLoadingError, "LOADING"),
        (exceptions.MasterDownError, "MASTERDOWN"),
        (exceptions.ClusterDownError, "CLUSTERDOWN"),
        (exceptions.MovedError, "MOVED"),
        (exceptions.TimeoutError, "TIMEOUT"),
        (TimeoutError, "TIMEOUT"),
    )
    said = str(error) or type(error).__name__
    if isinstance(error.__context__, ssl.SSLCertVerificationError):
        return "CERTIFICATE", said
    if said == "Authentication required.":
        return "NOAUTH", said
    if "user executing the script can't" in said:
        return "NOPERM", said
    for kind, code in known:
        if isinstance(error, kind):
            return code, said
    word = said.partition(" ")[0]
    if word in _PASSING or word in _PERMANENT:
        return word, said
    return ("ERR" if isinstance(error, exceptions.ResponseError) else ""), said
