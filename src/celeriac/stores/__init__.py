"""Stores keep one record per task. ``base`` is the port, ``records`` what is kept."""
