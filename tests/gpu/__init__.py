"""The program on real GPUs."""
