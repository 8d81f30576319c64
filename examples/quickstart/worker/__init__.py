"""The background half of the quickstart: the Celery app, its tasks, and the plain functions that do their work."""
