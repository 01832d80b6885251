"""Tuned configs for frameworks: exports, and the library of published results."""
