"""Where and when a sweep runs: in this process, in local processes, or on Slurm."""
