"""One training run of any task: typed config -> objects, the session, its folder, resuming, looking at it afterwards."""
