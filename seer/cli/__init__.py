"""Holds one file a verb; the only code that sees Hydra."""
