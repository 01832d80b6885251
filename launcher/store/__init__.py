"""What lies on the disk: the run folder, its records, and the RESULTS file."""
