"""``celeriac dev``: the API, a worker and the schedule under one supervisor, in one terminal, reloaded together."""
