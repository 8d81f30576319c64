"""celeriac: Celery for FastAPI, asyncio all the way through."""
