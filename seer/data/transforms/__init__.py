"""Samples to views: what is drawn for each, and how its image and its targets are cut by one draw."""
