"""SEER trains a vision backbone from images that nobody labelled or selected, and hands it over ready to fine-tune.

Nothing is imported here: torch costs seconds, and `seer --help` should not wait for it.
"""

__version__ = "0.1.0"
