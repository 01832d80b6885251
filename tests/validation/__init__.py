"""Tests of node validation."""
