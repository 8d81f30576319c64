from __future__ import annotations

import email
import email.policy
import os
from datetime import timedelta
from email.message import EmailMessage
from pathlib import Path

import pytest
from examples.quickstart.worker import mail


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("smtp://mail.example.com", mail.Server("mail.example.com")),
        ("smtp://[::1]:2525?starttls=never", mail.Server("::1", 2525, starttls=False)),
        (
            "smtp://us%40er:p%2Fw@mail.example.com:587?starttls=always",
            mail.Server("mail.example.com", 587, "us@er", "p/w", starttls=True),
        ),
        ("smtps://mail.example.com", mail.Server("mail.example.com", tls=True, starttls=False)),
    ],
)
def test_server_url(url: str, server: mail.Server) -> None:
    assert mail.Server.from_url(url) == server


@pytest.mark.parametrize(
    "url",
    [
        "mail.example.com",
        "http://mail.example.com",
        "smtp://",
        "smtp://host?starttls=perhaps",
        "smtp://host:port",
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError):
        mail.Server.from_url(url)


def message(recipient: str = "ada@example.com") -> EmailMessage:
    return mail.compose(
        sender="Shop <shop@example.com>",
        recipient=recipient,
        subject="Größe",
        body="Hello,\n.\nbye\n",
        unique="abc",
    )


def test_outbox_file_is_a_message_that_can_be_read_back(tmp_path: Path) -> None:
    path = mail.write_to_outbox(message(), tmp_path / "outbox", "abc")
    raw = path.read_bytes()
    assert raw.count(b"\n") == raw.count(b"\r\n")  # RFC 5322's line ends
    assert raw.isascii()
    read = email.message_from_bytes(raw, policy=email.policy.default)
    assert read["Subject"] == "Größe"
    assert read["To"] == "ada@example.com"
    assert read["Message-ID"] == "<abc@example.com>"
    assert read.get_content().splitlines() == ["Hello,", ".", "bye"]
    assert [entry.name for entry in path.parent.iterdir()] == ["abc.eml"]


def test_writing_again_leaves_one_file(tmp_path: Path) -> None:
    assert mail.write_to_outbox(message(), tmp_path, "abc") == mail.write_to_outbox(
        message(), tmp_path, "abc"
    )
    assert len(list(tmp_path.iterdir())) == 1


def test_an_international_address_can_be_written(tmp_path: Path) -> None:
    path = mail.write_to_outbox(message("jörg@example.com"), tmp_path, "abc")
    assert "jörg@example.com" in path.read_text("utf-8")


def test_a_header_cannot_be_smuggled_in() -> None:
    with pytest.raises(ValueError):
        mail.compose(sender="a@b.c", recipient="d@e.f", subject="x\r\nBcc: g@h.i", body="", unique="abc")


def test_remove_older_than_takes_old_messages_alone(tmp_path: Path) -> None:
    for name in ("old.eml", "new.eml", "old.txt"):
        (tmp_path / name).touch()
    for name in ("old.eml", "old.txt"):
        os.utime(tmp_path / name, (0, 0))
    assert mail.remove_older_than(tmp_path, timedelta(days=7)) == ["old.eml"]
    assert {path.name for path in tmp_path.iterdir()} == {"new.eml", "old.txt"}
    assert mail.remove_older_than(tmp_path / "missing", timedelta(days=7)) == []
