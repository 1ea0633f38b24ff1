"""Takes samples from tar shards to batches of views; the position of a run is one integer."""
