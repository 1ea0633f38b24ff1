"""Holds SwAV's objective."""
