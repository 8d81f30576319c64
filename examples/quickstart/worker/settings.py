"""What the environment can change. Durations are seconds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from worker.mail import Server

__all__ = ["Settings", "settings"]


def _mail_server_url(url: str) -> str:
    Server.from_url(url)
    return url


class Settings(BaseModel):
    """Each field is the environment variable of the same name in capitals."""

    #: How often ``process_data`` fails on purpose, from 0 (never) to 1 (always).
    failure_rate: Annotated[float, Field(ge=0, le=1)] = 0.1
    #: How often a failed ``process_data`` is tried again, and how long after.
    max_retries: NonNegativeInt = 3
    default_retry_delay: NonNegativeFloat = 5
    #: A pause after each column, to watch the progress of small data.
    step_seconds: NonNegativeFloat = 0

    #: ``smtp://user:password@host:587`` or ``smtps://…``; without it messages are written into the outbox.
    smtp_url: Annotated[str, AfterValidator(_mail_server_url)] | None = None
    mail_from: str = "Quickstart <quickstart@example.com>"
    outbox: Path = Path("outbox")
    #: How long the nightly clean-up leaves a message in the outbox.
    outbox_keep_days: NonNegativeFloat = 7

    #: How often the heartbeat beats.
    heartbeat_seconds: PositiveFloat = 300

    @classmethod
    def from_environment(cls) -> Settings:
        """Read and validate them. Raises pydantic's ValidationError, which names the field."""
        values = {name: os.environ.get(name.upper(), "") for name in cls.model_fields}
        return cls.model_validate({name: value for name, value in values.items() if value})


settings = Settings.from_environment()
