"""The API of the quickstart: it accepts work, answers at once, and tells how the work goes."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Request, status
from fastapi.responses import JSONResponse, RedirectResponse
from pydantic import BaseModel, EmailStr, Field

from celeriac.errors import BrokerUnavailable, PublishTimeout, StoreUnavailable, TaskNotFound
from worker.celery_app import celery
from worker.tasks import clean_up_outbox, process_data, send_notification

app = FastAPI(title="celeriac quickstart", lifespan=celery.lifespan)

# Cancel and retry are open to everybody here. An app on a network passes `dependencies` or `owner` instead.
app.include_router(celery.router(insecure=True), prefix="/tasks")


class Data(BaseModel):
    """A user's data: CSV with a header, or a JSON array of objects."""

    user_id: int = Field(examples=[42])
    payload: str = Field(examples=["name,age\nAda,36\nAlan,41"])


class Notification(BaseModel):
    """An e-mail to send."""

    recipient: EmailStr
    subject: Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\r\n]*$")]
    body: str


class Accepted(BaseModel):
    """The work will be done. Ask for its status by ``task_id``."""

    message: str
    task_id: str


class TaskStatus(BaseModel):
    """How a task stands: one of Celery's states, and what it returned or why it failed."""

    task_id: str
    status: str
    result: Any = None


@app.get("/", include_in_schema=False)
async def index() -> RedirectResponse:
    """The interactive documentation."""
    return RedirectResponse("/docs")


@app.post("/process-data", status_code=status.HTTP_202_ACCEPTED)
async def post_process_data(data: Data) -> Accepted:
    """Summarize CSV or JSON records in the background."""
    handle = await process_data.enqueue(data.user_id, data.payload)
    return Accepted(message="Data processing started", task_id=handle.id)


@app.post("/send-notification", status_code=status.HTTP_202_ACCEPTED)
async def post_send_notification(notification: Notification) -> Accepted:
    """Send an e-mail in the background."""
    handle = await send_notification.enqueue(notification.recipient, notification.subject, notification.body)
    return Accepted(message="Notification queued", task_id=handle.id)


@app.post("/clean-up", status_code=status.HTTP_202_ACCEPTED)
def post_clean_up() -> Accepted:
    """Do the nightly clean-up now. Plain Celery code: FastAPI runs a ``def`` endpoint in a thread, so it may block."""
    result = clean_up_outbox.delay()
    return Accepted(message="Clean-up started", task_id=result.id)


@app.get("/task-status/{task_id}", responses={404: {"description": "There is no such task."}})
async def get_task_status(task_id: str) -> TaskStatus:
    """How a task stands."""
    try:
        record = await celery.handle(task_id).record()
    except TaskNotFound as exc:
        raise HTTPException(status.HTTP_404_NOT_FOUND, str(exc)) from exc
    result = record.result
    if record.error is not None:
        what = {"RETRY": "Task will be retried", "REVOKED": "Task was cancelled"}.get(
            record.state, "Task failed"
        )
        result = f"{what}: {record.error}"
    return TaskStatus(task_id=task_id, status=record.state, result=result)


@app.exception_handler(BrokerUnavailable)
@app.exception_handler(StoreUnavailable)
@app.exception_handler(PublishTimeout)
async def unavailable(_request: Request, exc: Exception) -> JSONResponse:
    """The queue is away: the caller may try again."""
    return JSONResponse({"detail": str(exc)}, status.HTTP_503_SERVICE_UNAVAILABLE, {"Retry-After": "5"})
