"""Measures what the features are worth."""
