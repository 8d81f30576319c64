"""What a FastAPI app gets: the lifespan, the router of tasks, and the answers to what goes wrong."""
