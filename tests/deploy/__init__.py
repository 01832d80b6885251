"""Tests of the deployment, from a RESULTS file to files for frameworks."""
