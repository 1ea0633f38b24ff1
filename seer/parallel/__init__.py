"""Holds everything that knows of more than one process."""
