"""From a checkpoint to the files of a Hub repository."""
