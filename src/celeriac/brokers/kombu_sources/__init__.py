"""kombu's transports, each as a source of messages that one thread works with."""
