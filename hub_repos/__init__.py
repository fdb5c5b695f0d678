"""From a checkpoint to a published repository."""
