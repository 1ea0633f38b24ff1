"""Compares several trained networks on the same images."""
