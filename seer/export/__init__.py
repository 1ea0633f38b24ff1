"""Exports a backbone so that it loads elsewhere."""
