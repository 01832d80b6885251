"""What validation measures on a node."""
