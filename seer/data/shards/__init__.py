"""Opens, indexes and writes what samples are stored in: tar shards, folders and lists of files."""
