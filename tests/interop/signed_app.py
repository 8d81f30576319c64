"""A program whose messages are signed (Celery's ``auth`` serializer): what it writes is what a test looks at.

A program, because ``setup_security`` takes the other serializers away from the whole process.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from celeriac import Celery
from celeriac.errors import ContentDisallowed
from celeriac.worker.embedded import run_embedded


def new_app(folder: Path) -> Celery:
    app = Celery("signed", broker="memory://signed", set_as_current=False)
    app.conf.update(
        security_key=str(folder / "key.pem"),
        security_certificate=str(folder / "certificate.pem"),
        security_cert_store=str(folder / "certificate.pem"),
        security_digest="sha256",
        task_serializer="auth",
        accept_content=["auth"],
    )
    app.setup_security()
    return app


async def main(folder: Path) -> None:
    app = new_app(folder)

    @app.task(name="double")
    async def double(number: int) -> int:
        return 2 * number

    async with app, run_embedded(app, concurrency=1):
        sys.stdout.write(f"signed: {await (await double.enqueue(21)).result(10)}\n")
        try:
            await (await double.using(serializer="json").enqueue(21)).result(10)
        except ContentDisallowed as exc:
            sys.stdout.write(f"unsigned: {exc}\n")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
