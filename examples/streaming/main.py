"""A worker tells a story word by word, and a page in the browser shows it while it is told.

Run ``celeriac dev main:app`` and open http://127.0.0.1:8000. Reload the page in the middle, or open its address in a
second tab: every word is there, once and in order, because the words are kept with the task, and not in the page.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI
from fastapi.responses import FileResponse
from pydantic import BaseModel, StringConstraints

from celeriac import Celery

PAGE = Path(__file__).with_name("index.html")

#: Seconds between two words.
PAUSE = float(os.environ.get("WORD_SECONDS", "0.15"))

STORY = """
Early one morning, before the kettle had made up its mind, {hero} found a letter under the door. There was
no stamp on it, and no name, only a small drawing of a lighthouse. "Well," said {hero}, "somebody has to go
and see." So a coat was found, and a hat, and half a loaf of bread, and by noon the town was a handful of
roofs behind a hill. The road went down to the sea and stopped there, as roads do. A boat was waiting.
Nobody was in it, but the oars were dry, and somebody had left a lantern burning in broad daylight. {hero}
rowed until the stars came out and counted them twice, to be sure. And where the last star should have been
there was a window, high up, with a light in it, and a voice that said: "You took your time. The soup is
getting cold."
"""

celery = Celery("storyteller")
app = FastAPI(title="Storyteller", lifespan=celery.lifespan)
app.include_router(celery.router(), prefix="/tasks")


class Story(BaseModel):
    """What is asked for."""

    hero: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=60)]


class Begun(BaseModel):
    """The story is being told: follow ``/tasks/{task_id}/events``."""

    task_id: str


@celery.task
async def tell(hero: str) -> AsyncIterator[str]:
    """Tell a story, as a language model would: each word is an event as soon as it is there."""
    for word in STORY.format(hero=hero).split():
        await asyncio.sleep(PAUSE)
        yield word


@app.post("/stories", status_code=202)
async def begin(story: Story) -> Begun:
    """Have a story told."""
    handle = await tell.enqueue(story.hero)
    return Begun(task_id=handle.id)


@app.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """The page."""
    return FileResponse(PAGE)
