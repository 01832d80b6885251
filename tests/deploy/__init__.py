"""From a RESULTS file to what frameworks load."""
