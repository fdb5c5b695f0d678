"""A page that runs a model in its reader's browser."""
