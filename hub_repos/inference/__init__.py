"""Images to masks: inputs, tiles, outputs, the fast path."""
