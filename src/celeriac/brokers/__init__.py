"""Brokers move messages. ``base`` is the port; every other module here is one implementation."""
