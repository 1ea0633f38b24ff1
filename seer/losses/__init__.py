"""SwAV's objective."""
