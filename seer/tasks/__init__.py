"""Holds ways of learning: what the loop trains."""
