"""Measures expert-parallel communication on one allocation; knows nothing of Hydra, Slurm or the run folder."""
