"""Networks, innocent of ranks."""
