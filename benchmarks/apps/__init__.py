"""The applications that are measured: the same tasks on every system."""
