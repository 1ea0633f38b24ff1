"""Holds the networks, innocent of ranks."""
