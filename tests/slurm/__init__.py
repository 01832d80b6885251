"""The program on a real Slurm."""
