"""From data to a measured checkpoint."""
