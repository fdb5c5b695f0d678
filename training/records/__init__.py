"""What a run leaves: results, tables, pictures."""
