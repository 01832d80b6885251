"""What is measured next, and how shards and the final do it."""
