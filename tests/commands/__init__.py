"""Tests of the commands as users start them."""
