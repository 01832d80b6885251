"""Tests of the search: rounds, shards and the final."""
