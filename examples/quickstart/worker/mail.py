"""E-mail: real messages, over SMTP or into a folder. Plain functions: no Celery here."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8
from email.utils import format_datetime, parseaddr
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import aiosmtplib

__all__ = ["MailDeferred", "Server", "compose", "remove_older_than", "send", "write_to_outbox"]


class MailDeferred(ConnectionError):
    """The mail server is there, but cannot take the message now. It asks to be tried again."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where and how to send: ``smtp[s]://[user:password@]host[:port][?starttls=always|auto|never]``.

    ``smtps`` is TLS from the first byte (port 465). ``smtp`` (port 25, or 587 with ``starttls=always``) changes to TLS
    when the server offers it, unless ``starttls`` says otherwise.
    """

    host: str
    port: int | None = None
    username: str | None = None
    password: str | None = None
    tls: bool = False
    starttls: bool | None = None

    @classmethod
    def from_url(cls, url: str) -> Server:
        """Raises ValueError for what is no such URL."""
        parts = urlsplit(url)
        choices = {"always": True, "auto": None, "never": False}
        starttls = parse_qs(parts.query).get("starttls", ["auto"])[-1]
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname or starttls not in choices:
            raise ValueError(
                "SMTP_URL must be smtp[s]://[user:password@]host[:port][?starttls=always|auto|never]."
            )
        tls = parts.scheme == "smtps"
        return cls(
            host=parts.hostname,
            port=parts.port,
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            tls=tls,
            starttls=False if tls else choices[starttls],
        )


def compose(*, sender: str, recipient: str, subject: str, body: str, unique: str) -> EmailMessage:
    """An RFC 5322 message. ``unique`` makes its Message-ID, so that sending it twice can be noticed.

    Raises ValueError for a header with a line break.
    """
    domain = parseaddr(sender)[1].rpartition("@")[2] or "localhost"
    message = EmailMessage()
    message["From"] = sender
    message["To"] = recipient
    message["Subject"] = subject
    message["Date"] = format_datetime(datetime.now(UTC))
    message["Message-ID"] = f"<{unique}@{domain}>"
    message.set_content(body)
    return message


async def send(message: EmailMessage, server: Server) -> None:
    """Send over SMTP.

    Raises ConnectionError or TimeoutError for what may work later, and aiosmtplib's SMTPException for what will not.
    """
    try:
        await aiosmtplib.send(
            message,
            hostname=server.host,
            port=server.port,
            username=server.username,
            password=server.password,
            use_tls=server.tls,
            start_tls=server.starttls,
            timeout=30,
        )
    except aiosmtplib.SMTPRecipientsRefused as exc:
        raise _deferred_or_same(exc.recipients[0]) from exc
    except aiosmtplib.SMTPResponseException as exc:
        raise _deferred_or_same(exc) from exc


def _deferred_or_same(exc: aiosmtplib.SMTPResponseException) -> Exception:
    # RFC 5321, 4.2.1: replies from 400 to 499 are transient.
    return MailDeferred(f"{exc.code} {exc.message}") if 400 <= exc.code < 500 else exc


def write_to_outbox(message: EmailMessage, outbox: Path, name: str) -> Path:
    """Write the message to ``<name>.eml``, whole or not at all. Writing it again replaces it. Raises OSError."""
    outbox.mkdir(parents=True, exist_ok=True)
    target = outbox / f"{name}.eml"
    policy = SMTP if str(message["To"]).isascii() else SMTPUTF8
    descriptor, temporary = tempfile.mkstemp(dir=outbox, prefix=f".{name}-", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(message.as_bytes(policy=policy))
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


def remove_older_than(outbox: Path, age: timedelta) -> list[str]:
    """Delete messages that were written longer ago than ``age``. Returns their names. Raises OSError."""
    limit = (datetime.now(UTC) - age).timestamp()
    old = [path for path in outbox.glob("*.eml") if path.stat().st_mtime < limit]
    for path in old:
        path.unlink(missing_ok=True)
    return sorted(path.name for path in old)
