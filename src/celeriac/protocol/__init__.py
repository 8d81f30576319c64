"""Celery's message protocol v2 without I/O: bytes in, frozen views out, and the other way round."""
