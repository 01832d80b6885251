"""Findings from measurements, by pure functions."""
