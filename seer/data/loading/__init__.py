"""Makes batches ahead of training, in one process or its own; its state is one integer."""
