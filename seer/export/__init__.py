"""A backbone that loads elsewhere."""
