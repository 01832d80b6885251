"""From measurements to findings: pure functions."""
