"""One Redis server, as brokers and stores use it: where it is, one multiplexed connection, one for pub/sub, scripts."""
