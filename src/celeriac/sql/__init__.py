"""One SQL database that holds the queue and the records: engine, tables, and threads."""
