"""The measurements of a node."""
