"""Files that tasks are called with: kept in a storage, and sent as references."""
