"""Ways of learning: what the loop trains."""
