"""Turns samples into views: draws for each, and cuts its image and its targets by one draw."""
