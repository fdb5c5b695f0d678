"""Networks of other libraries as checkpoints of ours."""
