"""What runs in the publishing and measuring process: ``python -m benchmarks.probes <name> <arguments as JSON>``.

A probe is a function that takes its arguments by name and returns what it has measured, as JSON values.
"""
