"""What rebuilds a network: plain numbers and names, one file a variant."""
