"""A verdict for every node: measured like a sweep, judged by physics, references, the node itself and its fleet."""
