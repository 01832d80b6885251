"""Tests: a folder for each room of the program, a file for each module where that makes sense."""
