"""A metric for `evaluate.load`."""
