"""Benchmarks: scenarios and systems, all in real processes. Run by ``make bench``; told in ``docs/benchmarks.md``."""
