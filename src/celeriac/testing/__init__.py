"""What an application's tests, and the makers of brokers and stores, need."""
