"""Chaos: real processes and real servers are killed, paused and cut off, and what became of each task is counted.

``auditor.py`` is an app whose tasks write down each start and each end; ``publisher.py`` is a process that enqueues
them and writes down what was accepted. ``audit.py`` reads both, and tells what ran twice and how long it took to go on;
``reckoning.py`` waits for outcomes, and tells what was lost. Each attack is a function of a
:class:`~tests.acceptance.chaos.site.Site` and a seeded random number generator. ``python -m tests.acceptance.chaos`` is
the long version, ``tests/acceptance/test_chaos.py`` the short one.
"""
