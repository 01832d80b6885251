"""Tests of jobs: local, under Slurm, and waiting for them."""
