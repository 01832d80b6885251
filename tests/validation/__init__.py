"""A verdict for every node."""
