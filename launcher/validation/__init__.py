"""A verdict for every node: what a sweep measures, judged by physics, references, the node itself and the fleet."""
