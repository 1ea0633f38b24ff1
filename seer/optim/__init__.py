"""Holds optimizers, schedules, parameter groups."""
