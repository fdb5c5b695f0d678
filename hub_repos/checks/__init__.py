"""What `verify` is made of."""
