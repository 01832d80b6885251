"""Tests of RESULTS, Markdown and HTML reports."""
