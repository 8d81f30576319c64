"""An API that takes files, and tasks that work on them, in processes of their own."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

from fastapi import FastAPI, UploadFile

from celeriac import Celery

celery = Celery("uploads")
celery.conf.update({"celeriac_lease": 2.0})

app = FastAPI(lifespan=celery.lifespan)
router = celery.router(insecure=True)


def note(line: str) -> None:
    with Path("attempts.log").open("a") as log:
        log.write(f"{line}\n")


@celery.task(bind=True, max_retries=2, default_retry_delay=0)
async def digest(self: Any, file: UploadFile, failures: int = 0, gate: str = "") -> str:
    """The SHA-256 of a file, after so many failures; waits for the gate in the middle."""
    sha, size = hashlib.sha256(), 0
    while chunk := await file.read(1 << 20):
        sha.update(chunk)
        size += len(chunk)
        if size == 1 << 20:
            note(f"reading {self.request.id}")
            while gate and not Path(gate).exists():  # noqa: ASYNC240 - nothing else runs here
                await asyncio.sleep(0.02)
    note(f"read {size}")
    if self.request.retries < failures:
        raise self.retry(exc=OSError("not yet"))
    return sha.hexdigest()


@celery.task
def digest_in_a_thread(file: UploadFile) -> str:
    """The same, with the file itself."""
    return hashlib.file_digest(file.file, "sha256").hexdigest()


router.expose(digest, "/digests")
router.expose(digest_in_a_thread, "/thread-digests")
app.include_router(router, prefix="/tasks")
