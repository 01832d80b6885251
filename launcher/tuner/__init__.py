"""The search: which points to measure next, and the final."""
