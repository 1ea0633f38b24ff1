"""Runs one training of any task: typed config -> objects, the session, its folder, resuming, looking at it
afterwards."""
