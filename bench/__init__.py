"""Measures expert-parallel communication on one node; knows nothing of Hydra, Slurm or the run folder."""
