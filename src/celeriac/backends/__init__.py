"""Celery's synchronous result backends over celeriac's records: ``AsyncResult``, stock workers, canvas."""
