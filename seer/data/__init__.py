"""From tar shards to batches of crops; position is one integer."""
