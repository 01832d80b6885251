"""Tests of the analysis, from records to results."""
