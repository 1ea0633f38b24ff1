"""Holds what stands on a backbone, a kind of head a file."""
