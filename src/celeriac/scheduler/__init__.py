"""A scheduler for ``celery beat`` that keeps its state in celeriac's database, with a leader."""
