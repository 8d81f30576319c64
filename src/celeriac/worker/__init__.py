"""The worker: everything that runs inside `celery worker`."""
