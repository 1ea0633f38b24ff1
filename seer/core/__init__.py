"""Holds what every other package may use: randomness, durations, records, protocols, the log. Imports nothing
of SEER."""
